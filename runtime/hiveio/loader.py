"""ACTOR_MODULE → actors. Each way to fail is an error of its own with one clear line."""

import importlib
import inspect
import sys
import traceback
from types import ModuleType

from hiveio.actor import Actor, Contract, contracts
from hiveio.config import Settings
from hiveio.errors import LoadError, ModuleMissing, ModuleRaises, ModuleUnset, NoActor


def load(settings: Settings) -> list[Contract]:
    """The contracts of the actors that ACTOR_MODULE names.

    ``module`` takes the actors *defined* in that module, not imported ones; ``module:Class`` takes that one.
    Raises a LoadError: ModuleUnset, ModuleMissing, ModuleRaises, NoActor, BadAnnotation or NameTaken.
    """
    name, _, attribute = settings.actor_module.partition(":")
    if not name:
        raise ModuleUnset("ACTOR_MODULE is not set: name the module of your actor, as in ACTOR_MODULE=accounts")
    if settings.actor_path not in sys.path:
        sys.path.insert(0, settings.actor_path)
    module = _import(name, settings.actor_path)
    try:
        return contracts(_actors(module, name, attribute))
    except LoadError:
        raise
    except Exception as error:  # the __init__ of an actor
        raise _raised(name, error) from None


def _import(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself is missing, or one that it imports: these are two different faults.
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ModuleMissing(f"ACTOR_MODULE={name}: there is no module {error.name!r} in {path}") from None
        raise _raised(name, error) from None
    except LoadError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _raised(name, error) from None


def _raised(name: str, error: BaseException) -> ModuleRaises:
    frames = error.__traceback__
    while frames and (
        frames.tb_frame.f_code.co_filename == __file__ or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error.with_traceback(frames), frames, chain=False)).rstrip()
    return ModuleRaises(f"ACTOR_MODULE={name}: the module raised {type(error).__name__}: {error}\n{text}")


def _actors(module: ModuleType, name: str, attribute: str) -> list[type[Actor]]:
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
        if inspect.isclass(kind)
        and issubclass(kind, Actor)
        and kind is not Actor
        and kind.__module__ == module.__name__
    ]
    kinds = [kind for kind in kinds if not kind.__name__.startswith("_")]
    if not kinds:
        raise NoActor(f"ACTOR_MODULE={name}: no class derived from hiveio.Actor is defined in that module")
    return list(dict.fromkeys(kinds))
