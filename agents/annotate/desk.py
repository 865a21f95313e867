"""The images of a folder on a desk: which are to be looked at first, what is outlined in them, and what is saved."""

import os
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from seggym.agents.maskal.workflow import is_unsaved, read_query
from seggym.cohorts.annotations.labelme import is_labelme, labelme_content, parse_labelme
from seggym.cohorts.annotations.limits import image_size, parse_json_object, read_json_object
from seggym.cohorts.annotations.model import Annotation
from seggym.cohorts.annotations.reading import ImageFolder, open_image_folder
from seggym.errors import SeggymError
from seggym.files import json_bytes, write_json


class Desk:
    """The folder ``root``. Images have to be there at the start; annotations may come and go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images = self._folder()
        if not self._images.names:
            raise SeggymError(f"{root} holds no image, expected some to annotate: mend the path")
        self._writing = threading.Lock()

    def overview(self) -> dict[str, Any]:
        """The images, the least certain first, and the classes that there are."""
        folder, query = self._folder(), read_query(self.root)
        told = query.get("certainty") if query else None
        certainty = {name: value for name, value in (told or {}).items() if isinstance(value, (int, float))}
        annotated = set(folder.annotated())
        entries = []
        for name in self._images.names:
            state = "open" if name not in annotated else "saved"
            if query and state == "saved" and is_unsaved(folder, name, query):
                state = "predicted"
            entries.append({"name": name, "certainty": certainty.get(name), "state": state})
        entries.sort(key=lambda entry: certainty.get(entry["name"], float("inf")))
        classes = query.get("classes") if query else None
        return {"images": entries, "classes": classes if isinstance(classes, list) else []}

    def picture(self, name: str) -> bytes:
        """Image ``name`` as PNG, whatever it is stored as."""
        buffer = BytesIO()
        Image.fromarray(self._known(name).image(name)).save(buffer, "PNG")
        return buffer.getvalue()

    def content(self, name: str) -> dict[str, Any]:
        """The annotation of image ``name`` as the content of a LabelMe file, with what other programs put into one."""
        self._known(name)
        folder = self._folder()
        found = folder.annotation(name)
        width, height = image_size(self._images.images[name])
        content = labelme_content(found or Annotation(name, width, height))
        path = folder.annotation_file(name)
        if path is not None and path.suffix.lower() == ".json" and is_labelme(own := read_json_object(path)):
            content = content | own | {"imageData": None}
        return content | {"imageWidth": width, "imageHeight": height}

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write ``content`` beside image ``name`` as a LabelMe file; what is not as expected raises.

        A file of another format that annotated this image alone is kept under its name with ``.replaced`` after it.
        """
        self._known(name)
        image = self._images.images[name]
        path = image.with_suffix(".json")
        size = image_size(image)
        found = parse_labelme(content, path, name, size)
        if (found.width, found.height) != size:
            raise SeggymError(f"{path} would be for {found.width} x {found.height} pixels, expected {size}: reload")
        try:
            content = parse_json_object(json_bytes(content), path)
        except (ValueError, RecursionError):
            raise SeggymError(f"{path} would hold numbers or nesting that JSON has not: reload") from None
        with self._writing:
            earlier = self._folder().beside.get(name)
            if earlier is not None and earlier != path:
                os.replace(earlier, earlier.with_name(earlier.name + ".replaced"))
            write_json(path, content | {"imagePath": name, "imageData": None})

    def _known(self, name: str) -> ImageFolder:
        if name not in self._images.images:
            raise KeyError(name)
        return self._images

    def _folder(self) -> ImageFolder:
        return open_image_folder(self.root)
