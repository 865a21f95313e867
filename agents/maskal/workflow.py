"""Who annotates the images that were selected: people, in a folder ``annotate``, or files that are there already.

:class:`AnnotateFolder` copies the images to ``annotate`` below the images, on request with predictions to be corrected,
and goes on when every one of them has come back; meanwhile it waits, or ends the program, which the same command takes
up again. ``.query.json`` in that folder says what was asked (hidden, as an image may be called query.png). A kill at
any moment loses nothing: annotations are put beside their images all at once, and only then is the folder removed.

A prediction is not an annotation until somebody has saved it: files that are as they were written, to the byte and the
time, do not count. An empty file ``done`` in the folder accepts them all. Otherwise a command that is repeated by
accident would train a network on its own predictions.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from seggym.cohorts.annotations.labelme import labelme_content
from seggym.cohorts.annotations.limits import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    bare_name,
    image_size,
    read_bytes,
    read_json_object,
)
from seggym.cohorts.annotations.model import Annotation
from seggym.cohorts.annotations.reading import ANNOTATE, ImageFolder, open_image_folder
from seggym.cohorts.annotations.writing import Format, annotation_files
from seggym.errors import SeggymError
from seggym.files import json_bytes, write_atomic, write_json, write_together

QUERY, DONE = ".query.json", "done"

# The time that a prediction bears until somebody saves it: 2000-01-01, which every file system can hold.
_UNTOUCHED = 946_684_800
_SHOWN = 5

# What a network makes of the named images, asked for only where a query is new.
Predict = Callable[[Sequence[str]], Mapping[str, Annotation]]


class Annotator(Protocol):
    """Gives the annotations of selected images, whoever makes them."""

    def annotate(
        self, names: Sequence[str], certainty: Mapping[str, float] | None = None, predict: Predict | None = None
    ) -> dict[str, Annotation]:
        """The annotations of the images ``names``, in that order.

        ``certainty`` orders them for people, ``predict`` gives what they may start from. Annotations that are not as
        expected, or have other classes, raise :class:`SeggymError`.
        """


class AnnotationsPending(SeggymError):
    """Images wait for people; the program may end, and the same command goes on.

    ``problems`` says what has to be done in each folder.
    """

    def __init__(self, problems: Mapping[Path, str]) -> None:
        self.problems = dict(problems)
        super().__init__(
            f"{'; '.join(problems.values())}; {_commands(problems)} or another program can do that, then run the same "
            "command again"
        )


class SimulatedOracle:
    """Reads the annotations that are there, of the asked images only; a missing one is an error."""

    def __init__(self, folder: ImageFolder, classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, tuple(classes)

    def annotate(
        self, names: Sequence[str], certainty: Mapping[str, float] | None = None, predict: Predict | None = None
    ) -> dict[str, Annotation]:
        """See :class:`Annotator`; predictions are not asked for."""
        annotated = set(self.folder.annotated(names))
        missing = [name for name in names if name not in annotated]
        if missing:
            raise SeggymError(
                f"{self.folder.root} has no annotations of {_some(missing)}, expected one for each image: annotate "
                "them, or let the loop wait for people"
            )
        return read_checked(self.folder, names, self.classes)


class AnnotateFolder:
    """Lets people annotate in ``root/annotate``; images below ``root`` that are annotated already are not asked for.

    ``form`` is the format of predictions; any format is read. With ``wait`` it looks every ``interval`` seconds and
    tells ``say`` what is missing whenever that changes; without, it raises :class:`AnnotationsPending`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        classes: Sequence[str],
        *,
        form: Format = "labelme",
        wait: bool = False,
        interval: float = 5.0,
        say: Callable[[str], object] = print,
    ) -> None:
        self.root, self.folder = Path(root), Path(root) / ANNOTATE
        self.classes, self.form = tuple(classes), form
        self.wait, self.interval, self.say = wait, interval, say

    def annotate(
        self, names: Sequence[str], certainty: Mapping[str, float] | None = None, predict: Predict | None = None
    ) -> dict[str, Annotation]:
        """See :class:`Annotator`."""
        images = open_image_folder(self.root)
        if unknown := [name for name in names if name not in images.images]:
            raise SeggymError(f"{self.root} has no image {_some(unknown)}, expected those selected: restore them")
        annotated = set(images.annotated(names))
        missing = [name for name in names if name not in annotated]
        if missing:
            query = self._query(missing) or self._new_query(missing, certainty or {}, predict)
            self._offer(images, query)
            self._wait_for(missing, query)
            self._collect(images, missing)
            images = open_image_folder(self.root)
        found = read_checked(images, names, self.classes)
        self._clear(images)
        return found

    def _query(self, missing: Sequence[str]) -> dict[str, Any] | None:
        """What was asked before, where that includes ``missing``; None where nothing was."""
        query = read_query(self.folder)
        if query is None:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise SeggymError(f"{self.folder} holds files but no {QUERY}, expected none: move it elsewhere")
            return None
        if others := [name for name in missing if name not in query["names"]]:
            raise SeggymError(
                f"{self.folder} holds another query, without {_some(others)}: finish it with the command that made it, "
                "or move it elsewhere"
            )
        return query

    def _new_query(
        self, missing: Sequence[str], certainty: Mapping[str, float], predict: Predict | None
    ) -> dict[str, Any]:
        predictions = predict(missing) if predict is not None else {}
        files = annotation_files(list(predictions.values()), self.classes, self.form) if predictions else {}
        # Written down before any prediction is: a file of which this does not know counts as somebody's work.
        query = {
            "format": 1,
            "names": list(missing),
            "certainty": {name: float(certainty[name]) for name in missing if name in certainty},
            "classes": list(self.classes),
            "predictions": {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "content": content.decode()}
                for name, content in files.items()
            },
        }
        write_json(self.folder / QUERY, query)
        return query

    def _offer(self, images: ImageFolder, query: dict[str, Any]) -> None:
        """Copy what of the query is not in the folder yet; work that has begun stays as it is."""
        for name in query["names"]:
            if not (self.folder / name).exists():
                image_size(images.images[name])  # an image that nobody can open is refused before it is handed out
                write_atomic(self.folder / name, read_bytes(images.images[name], MAX_IMAGE_BYTES, "an image"))
        for name, told in query["predictions"].items():
            if not (self.folder / name).exists():
                write_atomic(self.folder / name, partial(_write_untouched, told["content"].encode()))

    def _wait_for(self, missing: Sequence[str], query: dict[str, Any]) -> None:
        said = ""
        while problem := self._problem(missing, query):
            if not self.wait:
                raise AnnotationsPending({self.folder: problem})
            if problem != said:
                self.say(f"Waiting: {problem}; {_commands([self.folder])} or another program can do that")
                said = problem
            time.sleep(self.interval)

    def _problem(self, missing: Sequence[str], query: dict[str, Any]) -> str:
        """What still has to be done in the folder; nothing where all is there."""
        try:
            here = open_image_folder(self.folder)
        except SeggymError as error:
            return str(error)
        annotated = set(here.annotated(missing))
        open_ones = [name for name in missing if name not in annotated]
        if open_ones:
            count = f"{len(open_ones)} of {len(missing)} images"
            return f"{count} in {self.folder} are to be annotated ({_some(open_ones)})"
        faults = []
        for name in missing:
            try:
                read_checked(here, [name], self.classes)
            except SeggymError as error:
                faults.append(str(error))
        if faults:
            return _some(faults, "; ")
        unsaved = [name for name in missing if is_unsaved(here, name, query)]
        if unsaved and not (self.folder / DONE).is_file():
            return (
                f"{len(unsaved)} of {len(missing)} predictions in {self.folder} have not been saved by anybody "
                f"({_some(unsaved)}): correct and save them, or accept them as they are with an empty file {DONE} there"
            )
        return ""

    def _collect(self, images: ImageFolder, missing: Sequence[str]) -> None:
        """Put the annotations beside their images: the files as they are, or LabelMe where one file is for many."""
        here = open_image_folder(self.folder)
        contents: dict[Path, bytes | Callable[[Path], object]] = {}
        for name in missing:
            beside = here.beside.get(name)
            suffix = beside.suffix.lower() if beside is not None else ".json"
            if beside is not None:
                content = read_bytes(beside, MAX_TEXT_BYTES)
            else:
                content = json_bytes(labelme_content(read_checked(here, [name], self.classes)[name]))
            contents[images.images[name].with_suffix(suffix)] = content
        write_together(contents)

    def _clear(self, images: ImageFolder) -> None:
        """Remove the folder of a query whose images all have their annotations; files of others stay."""
        query = read_query(self.folder)
        if query is None or len(images.annotated(query["names"])) < len(query["names"]):
            return
        here = open_image_folder(self.folder)
        told = [*here.beside.values(), *(file for file, _ in here.named.values())]
        # The query goes last: while it is there, the rest can be removed by the next start.
        rest = (*query["names"], *query["predictions"], DONE, QUERY)
        for file in (*told, *(self.folder / name for name in rest)):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def read_query(folder: Path) -> dict[str, Any] | None:
    """The query in the folder ``annotate``, None where there is none; all that it names lies in that folder."""
    path = folder / QUERY
    if not path.is_file():
        return None
    query = read_json_object(path)
    names, predictions = query.get("names"), query.get("predictions")
    told = [*names, *predictions] if isinstance(names, list) and isinstance(predictions, dict) else [None]
    if any(bare_name(name, path) != name for name in told):
        raise SeggymError(f"{path} is no query of this program: move {folder} elsewhere")
    return query


def is_unsaved(here: ImageFolder, name: str, query: dict[str, Any]) -> bool:
    """Whether the annotation of image ``name`` in the folder of ``query`` is a prediction that nobody has saved."""
    path = here.annotation_file(name)
    told = query["predictions"].get(path.name) if path is not None else None
    if path is None or not isinstance(told, dict) or int(path.stat().st_mtime) != _UNTOUCHED:
        return False
    return hashlib.sha256(read_bytes(path, MAX_TEXT_BYTES)).hexdigest() == told.get("sha256")


def read_checked(folder: ImageFolder, names: Sequence[str], classes: Sequence[str]) -> dict[str, Annotation]:
    """The annotations of ``names``; those that cannot be read or have other classes are told all at once."""
    found: dict[str, Annotation] = {}
    faults: list[str] = []
    for name in names:
        try:
            annotation = folder.annotation(name)
        except SeggymError as error:
            faults.append(str(error))
            continue
        if annotation is None:
            faults.append(f"{folder.images[name]} has no annotation")
            continue
        others = sorted({instance.label for instance in annotation.instances} - set(classes))
        if others:
            faults.append(
                f"{folder.annotation_file(name)} has objects of class {', '.join(map(repr, others))}, expected one of "
                f"{', '.join(classes)}: relabel them, or add the class to `classes`"
            )
        found[name] = annotation
    if faults:
        raise SeggymError(_some(faults, "; "))
    return found


def _commands(folders: Iterable[Path]) -> str:
    return ", ".join(f"`seggym annotate {folder}`" for folder in folders)


def _write_untouched(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    os.utime(path, (_UNTOUCHED, _UNTOUCHED))


def _some(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
