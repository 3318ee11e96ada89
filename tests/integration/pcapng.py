"""Reads pcapng as far as the tests need it; anything malformed raises."""
import struct


class Frame:
    def __init__(self, interface, time, captured, original, direction):
        self.interface, self.time, self.data, self.original, self.direction = interface, time, captured, original, direction


class Capture:
    """interfaces: names in the order of their blocks; frames; dropped: by interface, from the statistics at the end."""

    def __init__(self, data):
        self.interfaces, self.snaplens, self.frames, self.dropped, self.received = [], [], [], {}, {}
        at = 0
        while at < len(data):
            kind, length = struct.unpack_from("<II", data, at)
            if length % 4 or length < 12 or at + length > len(data) or struct.unpack_from("<I", data, at + length - 4)[0] != length:
                raise ValueError(f"block of type {kind:#x} at {at} has a bad length {length}")
            self._block(kind, data[at + 8:at + length - 4], at)
            at += length

    def _block(self, kind, body, at):
        if at == 0:
            if kind != 0x0A0D0D0A or struct.unpack_from("<IHH", body) != (0x1A2B3C4D, 1, 0):
                raise ValueError("no section header")
        elif kind == 1:
            link, _, snaplen = struct.unpack_from("<HHI", body)
            options = self._options(body[8:])
            if link != 1 or options[9] != b"\x09":
                raise ValueError("not Ethernet in nanoseconds")
            self.interfaces.append(options[2].decode())
            self.snaplens.append(snaplen)
        elif kind == 6:
            interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
            options = self._options(body[20 + (captured + 3) // 4 * 4:])
            direction = {1: "in", 2: "out"}[struct.unpack("<I", options[2])[0]]
            self.frames.append(Frame(self.interfaces[interface], (high << 32 | low) / 1e9, body[20:20 + captured], original, direction))
        elif kind == 5:
            interface = struct.unpack_from("<I", body)[0]
            options = self._options(body[12:])
            self.received[self.interfaces[interface]] = struct.unpack("<Q", options[4])[0]
            self.dropped[self.interfaces[interface]] = struct.unpack("<Q", options[5])[0]
        else:
            raise ValueError(f"block of type {kind:#x}")

    @staticmethod
    def _options(data):
        out, at = {}, 0
        while True:
            code, length = struct.unpack_from("<HH", data, at)
            if code == 0:
                return out
            out[code] = data[at + 4:at + 4 + length]
            at += 4 + (length + 3) // 4 * 4
