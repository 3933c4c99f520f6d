"""Whether all bytes of a recording came, by the sizes that its container states.

The length in seconds is no good measure of that: most containers estimate it, and some estimate it wrong.
"""

from webrtc.files.sniff import BOX_HEADER_BYTES, Container

OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the most that one page takes
_TAIL_BYTES = OGG_PAGE_BYTES


class Extent:
    """Watches the bytes of one upload go by."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._came = 0
        self._tail = bytearray()
        self._box_at = 0
        self._box_head = bytearray()
        self._states_sizes = True

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the file, from its first on."""
        if self._container.name == "mp4" and self._states_sizes:
            self._follow_boxes(data)
        elif self._container.name == "ogg":
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
        self._came += len(data)

    @property
    def came_whole(self) -> bool | None:
        """Whether all stated bytes came; None where the container states none."""
        missing = self.missing_bytes
        return None if missing is None else missing == 0

    @property
    def missing_bytes(self) -> int | None:
        """How many bytes are not there that the container states; None where it states none."""
        end = self._box_at if self._container.name == "mp4" else self._container.end_bytes
        return max(0, end - self._came) if end and self._states_sizes else None

    def share(self) -> float:
        """How much of the stated bytes came."""
        missing = self.missing_bytes or 0
        return self._came / (self._came + missing) if self._came else 1.0

    @property
    def ends_inside_page(self) -> bool:
        """Whether an Ogg file, which states no size, ends in the middle of a page, which does."""
        page = bytes(self._tail[max(0, self._tail.rfind(b"OggS")) :])
        if not page.startswith(b"OggS"):
            return False
        n_segments = page[26] if len(page) > 26 else 255
        return len(page) < 27 + n_segments + sum(page[27 : 27 + n_segments])

    def _follow_boxes(self, data: bytes) -> None:
        """Steps from box to box; `_box_at` ends behind the last box whose head came."""
        at = self._came
        while self._box_at < at + len(data):
            start = max(self._box_at + len(self._box_head), at) - at
            wanted = 16 - len(self._box_head)
            self._box_head += data[start : start + wanted]
            head = bytes(self._box_head)
            if len(head) < BOX_HEADER_BYTES:
                return
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                if len(head) < 16:
                    return
                size = int.from_bytes(head[8:16], "big")
            if size < BOX_HEADER_BYTES or not head[4:8].isalnum():  # up to the end, or no box: nothing is stated
                self._states_sizes = False
                return
            self._box_at += size
            self._box_head.clear()
