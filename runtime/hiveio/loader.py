"""Loads the actors that ACTOR_MODULE names. Each way to fail is an error of its own, with one clear line."""

import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

from hiveio.actor import Actor, Contract, contracts
from hiveio.config import Settings
from hiveio.errors import LoadError, ModuleMissing, ModuleRaises, ModuleUnset, NoActor

_OURS = str(Path(__file__).parent) + os.sep
_SHOWN = 10  # names in a line


def load(settings: Settings) -> list[Contract]:
    """The contracts of the actors that ACTOR_MODULE names.

    ``module`` takes the actors *defined* in that module, not imported ones; ``module:Class`` takes that one.
    Raises a LoadError: ModuleUnset, ModuleMissing, ModuleRaises, NoActor, BadAnnotation or NameTaken.
    """
    name, _, attribute = settings.actor_module.partition(":")
    if not name:
        raise ModuleUnset("ACTOR_MODULE is not set: name the module of your actor, as in ACTOR_MODULE=accounts")
    _check_name(name, settings.actor_path)
    if settings.actor_path not in sys.path:
        sys.path.insert(0, settings.actor_path)
    module = _import(name, settings.actor_path)
    _check_origin(name, settings.actor_path)
    try:
        return contracts(actors_in(module, name, attribute))
    except LoadError:
        raise
    except BaseException as error:  # the __init__ of an actor
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _raised(name, settings.actor_path, error) from None


def raised(error: BaseException) -> str:
    """What an actor's code raised, with its traceback from its own first frame on."""
    frames = error.__traceback__
    while frames and (
        frames.tb_frame.f_code.co_filename.startswith(_OURS) or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error.with_traceback(frames), frames, chain=False)).rstrip()
    return f"raised {type(error).__name__}: {error}\n{text}"


# -- the module


def _check_name(name: str, folder: str) -> None:
    """Raises ModuleMissing for a name that cannot be a module's, or is one of the standard library's."""
    setting, top = f"ACTOR_MODULE={name}", name.partition(".")[0]
    if name.endswith(".py") or "/" in name:
        right = name.removesuffix(".py").strip("/").replace("/", ".")
        raise ModuleMissing(f"{setting}: it names a module and not a file; write ACTOR_MODULE={right}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ModuleMissing(f"{setting}: a module's name has letters, digits and _ only; rename the file")
    if top in sys.stdlib_module_names and (own := _own(top, folder)):
        raise ModuleMissing(
            f"{setting}: the standard library of Python has a module {top}, and one of the two would hide the other; "
            f"rename {own}"
        )


def _own(top: str, folder: str) -> Path | None:
    """The file, or the folder, of a module in ACTOR_PATH."""
    return next((path for path in (Path(folder, f"{top}.py"), Path(folder, top)) if path.exists()), None)


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself is missing, or one that it imports: these are two different faults.
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ModuleMissing(f"ACTOR_MODULE={name}: {_missing(name, error.name, folder)}") from None
        raise _raised(name, folder, error) from None
    except LoadError:
        raise
    except PermissionError as error:
        if not str(error.filename).startswith(folder):
            raise _raised(name, folder, error) from None
        text = f"{error.filename} cannot be read by the user {os.geteuid()} of this process; chmod a+r {error.filename}"
        raise ModuleMissing(f"ACTOR_MODULE={name}: {text}") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _raised(name, folder, error) from None


def _missing(name: str, missing: str, folder: str) -> str:
    """Why a module is not found."""
    parent, _, last = missing.rpartition(".")
    if hasattr(sys.modules.get(parent), last):
        return f"{last} is no module; a class is named behind a colon, as in ACTOR_MODULE={parent}:{last}"
    at = Path(folder, *parent.split(".")) if parent else Path(folder)
    text = f"there is no module {missing!r} in {folder}"
    if not at.is_dir():
        return f"{text}, and {at} is no folder: mount the actor's folder there, or set ACTOR_PATH"
    if not os.access(at, os.R_OK | os.X_OK):
        return f"{text}: the user {os.geteuid()} of this process cannot read {at}; chmod -R a+rX {at}"
    return f"{text}; {_listed(at)}"


def _listed(folder: Path) -> str:
    found = sorted(module.name for module in pkgutil.iter_modules([str(folder)]))
    return f"modules there: {', '.join(found[:_SHOWN]) or 'none'}{', …' if len(found) > _SHOWN else ''}"


def _check_origin(name: str, folder: str) -> None:
    """Raises ModuleMissing where an installed package of the same name comes before the file in ACTOR_PATH."""
    top = name.partition(".")[0]
    file = getattr(sys.modules[top], "__file__", None)
    own = _own(top, folder)
    if file is None or own is None:
        return
    at = Path(file).parent.parent if Path(file).stem == "__init__" else Path(file).parent
    if at.resolve() != Path(folder).resolve():
        raise ModuleMissing(f"ACTOR_MODULE={name}: Python has another module {top} already, {file}; rename {own}")


def _raised(name: str, folder: str, error: BaseException) -> ModuleRaises:
    setting = f"ACTOR_MODULE={name}"
    if isinstance(error, ImportError) and str(error).startswith("attempted relative import"):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        mounted = Path(folder).resolve()
        return ModuleRaises(
            f"{setting}: {frame.filename}:{frame.lineno}: {frame.line or 'the import'} is relative, and works inside a "
            f"package only; write it without the dots, or load the folder as a package: ACTOR_PATH={mounted.parent}, "
            f"ACTOR_MODULE={mounted.name}.{name}"
        )
    hint = ""
    if isinstance(error, ImportError | AttributeError):
        hiding = [module.name for module in pkgutil.iter_modules([folder]) if module.name in sys.stdlib_module_names]
        if hiding:
            hint = f" (in {folder}, {', '.join(hiding)} has a name of the standard library's: rename it)"
    first, _, rest = raised(error).partition("\n")
    return ModuleRaises(f"{setting}: the module {first}{hint}\n{rest}")


# -- the actors in it


def actors_in(module: ModuleType, name: str, attribute: str) -> list[type[Actor]]:
    """The actors of a module, or the one that ``attribute`` names. Raises NoActor."""
    if attribute:
        found = getattr(module, attribute, None)
        if found is None:
            raise NoActor(f"ACTOR_MODULE={name}:{attribute}: the module {name} has no {attribute}")
        if not (inspect.isclass(found) and issubclass(found, Actor)) or found is Actor:
            raise NoActor(f"ACTOR_MODULE={name}:{attribute}: {attribute} is not a class derived from hiveio.Actor")
        return [found]
    kinds = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Actor) and kind is not Actor
    ]
    defined = [kind for kind in kinds if kind.__module__ == module.__name__ and not kind.__name__.startswith("_")]
    if not defined:
        text = f"ACTOR_MODULE={name}: no class derived from hiveio.Actor is defined in that module"
        raise NoActor(text + _instead(module, name, kinds))
    return list(dict.fromkeys(defined))


def _instead(module: ModuleType, name: str, kinds: list[type[Actor]]) -> str:
    """A hint at what may be meant, where a module defines no actor."""
    for kind in kinds:
        if kind.__module__ == module.__name__:
            return f"; {kind.__name__} begins with _, which leaves it to other classes to derive from it"
        if not kind.__module__.startswith("hiveio."):
            return (
                f"; it imports {kind.__name__}: name the module that defines it, ACTOR_MODULE={kind.__module__}, or "
                f"the class, ACTOR_MODULE={name}:{kind.__name__}"
            )
    if paths := getattr(module, "__path__", None):
        return f"; it is a package: name a module in it ({_listed(Path(next(iter(paths))))})"
    return f" ({module.__file__})" if getattr(module, "__file__", None) else ""
