"""`python -m metaecg.serve`: personalize new patients over HTTP; `tokens` says who may."""

import argparse
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from metaecg.errors import ConfigError, MetaECGError
from metaecg.serve.memory import limit_arenas
from metaecg.serve.settings import Settings

EXIT_BUG, EXIT_CONFIG, EXIT_DATA = 1, 2, 3
DEFAULT_ORG = "default"
STOP_S = 10
"""How long requests may take to end once the server is told to stop."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for settings, 3 for base or store."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["tokens"]:
            return _tokens(_token_parser().parse_args(arguments[1:]))
        return _serve(_settings(_server_parser().parse_args(arguments)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (MetaECGError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DATA
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # a bug: the traceback is what its report needs
        traceback.print_exc()
        return EXIT_BUG


def _server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaecg.serve",
        description="Personalize new patients over HTTP, with a page at / where a person labels. "
        "`python -m metaecg.serve tokens --help` is about who may.",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=field.description)
            continue
        text = f"{field.description} (default: {field.default})"
        parser.add_argument(flag, metavar=name.upper(), help=text.replace("%", "%%"))
    return parser


def _token_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaecg.serve tokens",
        description="Tokens let programs and people in; each belongs to one organisation.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser(
        "create", help="make a token; it is shown once", allow_abbrev=False
    )
    create.add_argument("--org", required=True, metavar="NAME", help="organisation; made if needed")
    create.add_argument("--name", default="", metavar="TEXT", help="what the token is for")
    create.add_argument("--days", type=float, metavar="N", help="days that it is valid; for ever")
    listing = commands.add_parser("list", help="list tokens", allow_abbrev=False)
    revoke = commands.add_parser("revoke", help="end a token for good", allow_abbrev=False)
    revoke.add_argument("token_id", type=int, metavar="ID", help="number of the token")
    default = Settings.model_fields["store"].default
    for command in (create, listing, revoke):
        command.add_argument("--store", default=default, metavar="URL", help="the database")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {name: value for name, value in vars(arguments).items() if value not in (None, False)}
    return _checked(given)


def _checked(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = [f"--{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise ConfigError([problem.replace("_", "-", 2) for problem in problems]) from error


def _serve(settings: Settings) -> int:
    # Before torch is imported: its own choice is a thread per core for every computation.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.torch_threads))
    limit_arenas()
    import uvicorn

    from metaecg.serve.app import create_app
    from metaecg.serve.logs import set_up_logs
    from metaecg.serve.state import open_services
    from metaecg.serve.upload_folder import remove_abandoned

    set_up_logs(settings.log_level)
    remove_abandoned()
    services = open_services(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(services=services),
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=STOP_S,
        )
    )
    listening = _listening(settings)
    # uvicorn ends in order and then raises the signal again; ours makes that a normal end.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with listening:
        _announce(services, settings.host, listening.getsockname()[1])
        server.run(sockets=[listening])
    return 0


def _listening(settings: Settings) -> socket.socket:
    """Return a socket at the settings' address; who connects before the server runs waits."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"{settings.host}:{settings.port} can't be listened on ({error.strerror}). Is another "
            "server there? Choose another --port or --host."
        ) from error


def _announce(services, host: str, port: int) -> None:
    """Say where the server is, and how to get in if nobody can yet."""
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    if not services.store.list_orgs():
        org = services.store.create_org(DEFAULT_ORG)
        _, secret = services.store.create_token(org.org_id, "first start")
        print(f"{address}#token={secret}")
        print("Keep this address: it lets you in, and it isn't shown again.")
    print(f"metaecg: {address}", flush=True)


def _tokens(arguments: argparse.Namespace) -> int:
    from metaecg.serve.store import Store

    store = Store(_checked({"store": arguments.store}).store)
    try:
        store.migrate()
        {"create": _create, "list": _list, "revoke": _revoke}[arguments.command](store, arguments)
    finally:
        store.close()
    return 0


def _create(store, arguments: argparse.Namespace) -> None:
    from datetime import UTC, datetime, timedelta

    expires_at = None
    if arguments.days is not None:
        if not 0 < arguments.days < 36_500:
            raise ConfigError(f"--days is {arguments.days:g}; a number above 0 was expected.")
        expires_at = datetime.now(UTC) + timedelta(days=arguments.days)
    orgs = {org.name: org for org in store.list_orgs()}
    org = orgs.get(arguments.org) or store.create_org(arguments.org)
    info, secret = store.create_token(org.org_id, arguments.name or "command line", expires_at)
    print(secret)
    print(
        f"token {info.token_id} of organisation {org.name!r}; it isn't shown again.",
        file=sys.stderr,
    )


def _list(store, arguments: argparse.Namespace) -> None:
    print(f"{'id':>5}  {'organisation':20}  {'name':20}  {'made':20}  state")
    for org in store.list_orgs():
        for token in store.list_tokens(org.org_id):
            made = f"{token.created_at:%Y-%m-%d %H:%M:%S}"
            print(
                f"{token.token_id:>5}  {org.name:20}  {token.name:20}  {made:20}  {_state(token)}"
            )


def _revoke(store, arguments: argparse.Namespace) -> None:
    for org in store.list_orgs():
        if arguments.token_id in [token.token_id for token in store.list_tokens(org.org_id)]:
            store.revoke_token(org.org_id, arguments.token_id)
            print(f"token {arguments.token_id} of organisation {org.name!r} is revoked.")
            return
    raise ConfigError(f"there is no token {arguments.token_id}; `tokens list` shows them.")


def _state(token) -> str:
    from datetime import UTC, datetime

    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None:
        return "valid"
    is_over = token.expires_at <= datetime.now(UTC)
    return "expired" if is_over else f"valid until {token.expires_at:%Y-%m-%d %H:%M}"


if __name__ == "__main__":
    sys.exit(main())
