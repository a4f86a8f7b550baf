"""Frames out of received bytes, and frames into buffers to be written. `framing.pxd` draws them.

FrameReader owns the receive buffer of one connection and fits asyncio.BufferedProtocol; FrameWriter gathers
what leaves in one turn of the event loop. Neither knows sockets, states or what a message means: that is
room `protocol`, the only one that should import this. Read `FrameReader.make_room`, then `FrameReader.parse`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memmove

cimport cython

from streamkit._core.debug cimport LIVE_RECEIVE_BLOCK, SK_COUNT, live_counts

from streamkit.errors import ProtocolMismatch

MESSAGE = KIND_MESSAGE
PUT = KIND_PUT
PUT_OK = KIND_PUT_OK
FETCH = KIND_FETCH
FETCH_OK = KIND_FETCH_OK
REPLICATE = KIND_REPLICATE
REPLICATED = KIND_REPLICATED
FRAME_START_BYTES = START_BYTES

cdef enum:
    BLOCK_BYTES_LEAST = 16 * 1024
    INLINE_BYTES = 4 * 1024        # payloads up to this are copied beside their header: cheaper than an iovec
    BATCH_HEADER_BYTES = 112       # _core.batch; repeated, because framing knows of a batch only where it ends
    BATCH_BASE_AT = 8
    BATCH_COUNT_AT = 56

cdef class Block:
    def __cinit__(self, Py_ssize_t size):
        self.bytes = <uint8_t*>malloc(size)
        SK_COUNT(live_counts[LIVE_RECEIVE_BLOCK], 1)
        if self.bytes == NULL:
            raise MemoryError()
        self.size = size

    def __dealloc__(self):
        SK_COUNT(live_counts[LIVE_RECEIVE_BLOCK], -1)
        free(self.bytes)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.bytes, self.size, 0, flags)


@cython.freelist(64)
cdef class MessageFrame:
    """A message, still packed. request_id 0: one-way."""

    def __init__(self, uint32_t request_id, bytes payload not None):
        self.request_id = request_id
        self.payload = payload


@cython.freelist(256)
cdef class PutFrame:
    """A put. The frame is itself a read-only buffer over the batch, good until the reader's next get_buffer."""

    @property
    def batch(self):
        """A memoryview of the batch; whoever keeps it longer than this call copies it."""
        return PyMemoryView_FromObject(self)

    @property
    def raw_bytes(self):
        """What the batch's header says of its size before compression; 0 when there is no whole header."""
        cdef uint32_t raw_bytes
        if self.size < BATCH_HEADER_BYTES:
            return 0
        memcpy(&raw_bytes, self.at + 60, 4)
        return raw_bytes

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.at, self.size, 1, flags)


@cython.freelist(256)
cdef class PutReceipt:
    """A batch is stored. duplicate: 0 no, 1 it was stored before at base_sequence, 2 before and its place is forgotten.

    replicas: so many copies hold it at least, 0: not told. synced: on their disks, not only with their kernels.
    """

    def __init__(self, uint64_t base_sequence, uint64_t append_time_ms, uint32_t epoch, uint32_t duplicate=0,
                 uint32_t request_id=0, uint32_t replicas=0, bint synced=False):
        self.base_sequence = base_sequence
        self.append_time_ms = append_time_ms
        self.epoch = epoch
        self.duplicate = duplicate
        self.request_id = request_id
        self.replicas = replicas
        self.synced = synced

    def __repr__(self):
        return (f"PutReceipt(base_sequence={self.base_sequence}, append_time_ms={self.append_time_ms}, "
                f"epoch={self.epoch}, duplicate={self.duplicate}, replicas={self.replicas}, synced={self.synced})")


@cython.freelist(64)
cdef class FetchFrame:
    """A fetch. lease_epoch and session are 0 and application is empty for a plain reader."""


@cython.freelist(64)
cdef class Fetched:
    """What a fetch brought. batches: read-only views of one bytes object, which they keep alive."""

    def __init__(self, list batches not None, uint64_t high_watermark, uint64_t log_start, uint64_t log_end,
                 uint64_t next_sequence, uint32_t request_id=0):
        self.batches = batches
        self.high_watermark = high_watermark
        self.log_start = log_start
        self.log_end = log_end
        self.next_sequence = next_sequence
        self.request_id = request_id

    def __repr__(self):
        return (f"Fetched({len(self.batches)} batches, high_watermark={self.high_watermark}, "
                f"log_start={self.log_start}, log_end={self.log_end}, next_sequence={self.next_sequence})")


@cython.freelist(256)
cdef class Section:
    """What a leader says of one shard; itself a read-only buffer over the batches that begin at `start`.

    One that a reader made is good until its next get_buffer: whoever keeps the batches copies them.
    """

    def __init__(self, bytes shard not None, uint32_t epoch, uint32_t level, uint64_t start, uint32_t previous_epoch,
                 uint64_t high_watermark, uint64_t log_start, uint64_t leader_end, uint64_t epoch_start,
                 bytes batches=b""):
        _check_uuid(shard)
        self.shard = shard
        self.epoch = epoch
        self.level = level
        self.start = start
        self.previous_epoch = previous_epoch
        self.high_watermark = high_watermark
        self.log_start = log_start
        self.leader_end = leader_end
        self.epoch_start = epoch_start
        self.owner = batches
        self.at = <const uint8_t*>PyBytes_AS_STRING(batches)
        self.size = PyBytes_GET_SIZE(batches)

    @property
    def batches(self):
        """A memoryview of all batches, one after the other."""
        return PyMemoryView_FromObject(self)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, <void*>self.at, self.size, 1, flags)

    def __repr__(self):
        return (f"Section({self.shard.hex()}, epoch={self.epoch}, level={self.level}, start={self.start}, "
                f"previous_epoch={self.previous_epoch}, high_watermark={self.high_watermark}, "
                f"log_start={self.log_start}, leader_end={self.leader_end}, {self.size} bytes)")


@cython.freelist(256)
cdef class Acknowledgement:
    """What a follower says of one shard. written: 0 when the link speaks protocol 1."""

    def __init__(self, bytes shard not None, bytes incarnation not None, uint32_t epoch, uint32_t verdict, uint64_t end,
                 uint64_t written=0):
        _check_uuid(shard)
        _check_uuid(incarnation)
        self.shard = shard
        self.incarnation = incarnation
        self.epoch = epoch
        self.verdict = verdict
        self.end = end
        self.written = written

    def __repr__(self):
        return (f"Acknowledgement({self.shard.hex()}, epoch={self.epoch}, verdict={self.verdict}, end={self.end}, "
                f"written={self.written})")


cdef class FrameReader:
    """The receiving side of one connection.

    frame_bytes_max: the largest `length` a frame may claim. keep_bytes: how large a buffer may stay.
    accepts: bit 1 << kind for each kind that may come now; room `protocol` derives it from its state table.
    failure: a ProtocolMismatch once the bytes are no longer frames; nothing is parsed from then on.

    Memory: the buffer starts at 16 KiB and at most doubles when it is full, so it never exceeds twice what
    really arrived, nor the larger of keep_bytes and one whole frame.
    """

    def __cinit__(self, Py_ssize_t frame_bytes_max, Py_ssize_t keep_bytes=256 * 1024, uint32_t accepts=0x3E):
        if not 8 <= frame_bytes_max < 0x7FFFFFFF or keep_bytes < 0:
            raise ValueError(f"frame_bytes_max must be 8..2147483646, got {frame_bytes_max}")
        self.length_max = <uint32_t>frame_bytes_max
        self.keep = max(keep_bytes, <Py_ssize_t>BLOCK_BYTES_LEAST)
        self.wanted = BLOCK_BYTES_LEAST
        self.block = Block(BLOCK_BYTES_LEAST)
        self.accepts = accepts
        self.first = True

    @property
    def buffered_bytes(self):
        """Received and not yet part of a whole frame."""
        return self.end - self.begin

    @property
    def capacity_bytes(self):
        return self.block.size

    def get_buffer(self, Py_ssize_t sizehint=-1):
        """Writable room for what is received next, never empty. Ends the life of earlier PutFrame batches."""
        self.make_room()
        return PyMemoryView_FromObject(self.block)[self.end:self.block.size]

    def buffer_updated(self, Py_ssize_t count):
        """Take note of `count` received bytes; returns the frames that are whole now, in order.

        Frames in front of garbage are returned; look at `failure` afterwards.
        """
        if not 0 <= count <= self.block.size - self.end:
            raise ValueError(f"{count} bytes cannot have been received into {self.block.size - self.end}")
        self.end += count
        if self.end == self.block.size and self.wanted < self.keep:
            self.wanted = min(self.wanted * 2, self.keep)
        return self.parse()

    def feed(self, const uint8_t[::1] data not None):
        """The same for bytes that lie elsewhere; copies them."""
        cdef Py_ssize_t count = data.shape[0]
        self.make_room()
        if count > self.block.size - self.end:
            self.resize(self.end - self.begin + count)
        if count:
            memcpy(self.block.bytes + self.end, &data[0], count)
        self.end += count
        return self.parse()

    cdef void resize(self, Py_ssize_t size):
        # Views of the old block keep it alive; its bytes stay as they are.
        cdef Block block = Block(size)
        cdef Py_ssize_t pending = self.end - self.begin
        memcpy(block.bytes, self.block.bytes + self.begin, pending)
        self.block = block
        self.begin = 0
        self.end = pending

    cdef void make_room(self):
        # One rule: an empty buffer starts over for free; a cut frame moves to the front only when little room
        # is left behind it, so each byte moves at most about once; a full buffer doubles, up to the frame.
        cdef Py_ssize_t pending = self.end - self.begin
        cdef Py_ssize_t room = self.block.size - self.end
        cdef Py_ssize_t need = (self.total if self.total else START_BYTES) - pending
        if pending == 0:
            self.begin = self.end = 0
            if self.block.size < self.wanted or self.block.size > self.keep:
                self.resize(self.wanted)
            return
        if self.begin and room < max(need, self.block.size >> 2):
            if self.block.size < self.wanted:
                self.resize(self.wanted)
            else:
                memmove(self.block.bytes, self.block.bytes + self.begin, pending)
                self.begin = 0
                self.end = pending
        if self.end == self.block.size:
            self.resize(min(self.block.size * 2, max(self.total, self.block.size + START_BYTES)))

    cdef list parse(self):
        cdef list frames = []
        cdef FrameStart start
        cdef Verdict verdict
        cdef object frame
        if self.failure is not None:
            self.begin = self.end = 0
            return frames
        while True:
            verdict = read_start(self.block.bytes + self.begin, self.end - self.begin, &start,
                                 self.length_max, self.accepts)
            self.total = <Py_ssize_t>start.length + 4 if verdict == WHOLE else 0
            if verdict < 0:
                self.fail(verdict, &start)
                return frames
            if verdict == MORE or self.total > self.end - self.begin:
                return frames
            if start.kind >= KIND_REPLICATE:
                if not self.build_group(frames, &start):
                    return frames
            else:
                frame = self.build(&start)
                if frame is None:
                    return frames
                frames.append(frame)
            self.begin += self.total
            self.total = 0
            self.first = False

    cdef object build(self, FrameStart* start):
        # The whole frame lies at `begin`; read_start has checked that its header is inside it.
        cdef const uint8_t* header = self.block.bytes + self.begin + START_BYTES
        cdef const uint8_t* payload = header + start.header_bytes
        cdef Py_ssize_t size = self.block.bytes + self.begin + self.total - payload
        cdef MessageFrame message
        cdef PutFrame put
        cdef PutReceipt receipt
        if start.kind == KIND_PUT:
            put = PutFrame.__new__(PutFrame)
            put.request_id = start.request_id
            put.timeout_ms = (<const PutHeader*>header).timeout_ms
            put.shard = PyBytes_FromStringAndSize(<const char*>header, 16)
            put.block = self.block
            put.at = <uint8_t*>payload
            put.size = size
            return put
        if start.kind == KIND_PUT_OK:
            receipt = PutReceipt.__new__(PutReceipt)
            receipt.request_id = start.request_id
            receipt.base_sequence = (<const PutOkHeader*>header).base_sequence
            receipt.append_time_ms = (<const PutOkHeader*>header).append_time_ms
            receipt.epoch = (<const PutOkHeader*>header).epoch
            receipt.duplicate = min((<const PutOkHeader*>header).bits & 3, <uint32_t>2)
            receipt.synced = (<const PutOkHeader*>header).bits >> 2 & 1
            receipt.replicas = (<const PutOkHeader*>header).bits >> 8 & 0xFF
            return receipt
        if start.kind == KIND_FETCH:
            return self.build_fetch(start, header)
        if start.kind == KIND_FETCH_OK:
            return self.build_fetched(start, header, payload, size)
        message = MessageFrame.__new__(MessageFrame)
        message.request_id = start.request_id
        message.payload = PyBytes_FromStringAndSize(<const char*>payload, size)
        return message

    cdef object build_fetch(self, FrameStart* start, const uint8_t* header):
        cdef FetchFrame fetch = FetchFrame.__new__(FetchFrame)
        cdef const FetchHeader* fields = <const FetchHeader*>header
        cdef Py_ssize_t name_bytes = start.header_bytes - FETCH_HEADER_BYTES
        fetch.application = ""
        if name_bytes:
            try:
                if name_bytes > APPLICATION_BYTES_MAX:
                    raise ValueError(name_bytes)
                fetch.application = PyUnicode_DecodeUTF8(<const char*>header + FETCH_HEADER_BYTES, name_bytes, NULL)
            except ValueError:
                self.fail(BAD_NAME, start)
                return None
        fetch.request_id = start.request_id
        fetch.shard = PyBytes_FromStringAndSize(<const char*>header, 16)
        fetch.start = fields.start
        fetch.bytes_max = fields.bytes_max
        fetch.wait_ms = fields.wait_ms
        fetch.lease_epoch = fields.lease_epoch
        fetch.session = fields.session
        return fetch

    cdef object build_fetched(self, FrameStart* start, const uint8_t* header, const uint8_t* payload, Py_ssize_t size):
        # Finds where each batch ends by its batch_bytes; what is inside is for _core.batch to check.
        cdef Fetched fetched = Fetched.__new__(Fetched)
        cdef const FetchOkHeader* fields = <const FetchOkHeader*>header
        cdef Py_ssize_t at = 0
        cdef uint32_t batch_bytes
        cdef object view
        fetched.batches = []
        if size:
            view = PyMemoryView_FromObject(PyBytes_FromStringAndSize(<const char*>payload, size))
            while size - at >= BATCH_HEADER_BYTES and payload[at] == c"S" and payload[at + 1] == c"K":
                memcpy(&batch_bytes, payload + at + 4, 4)
                if batch_bytes < BATCH_HEADER_BYTES or batch_bytes > size - at:
                    break
                fetched.batches.append(view[at:at + batch_bytes])
                at += batch_bytes
        if at != size or len(fetched.batches) != fields.batch_count:
            self.fail(BAD_BATCHES, start)
            return None
        fetched.request_id = start.request_id
        fetched.high_watermark = fields.high_watermark
        fetched.log_start = fields.log_start
        fetched.log_end = fields.log_end
        fetched.next_sequence = fields.next_sequence
        return fetched

    cdef bint build_group(self, list frames, FrameStart* start):
        # A group's parts join `frames` one by one, all of them or none.
        cdef const uint8_t* header = self.block.bytes + self.begin + START_BYTES
        cdef const uint8_t* payload = header + start.header_bytes
        cdef Py_ssize_t size = self.block.bytes + self.begin + self.total - payload
        cdef Py_ssize_t before = len(frames)
        cdef bint whole
        if start.kind == KIND_REPLICATE:
            whole = self.build_sections(frames, header, payload, size)
        else:
            whole = self.build_acknowledgements(frames, header, payload, size)
        if not whole:
            del frames[before:]
            self.fail(BAD_SECTIONS if start.kind == KIND_REPLICATE else BAD_ACKNOWLEDGEMENTS, start)
        return whole

    cdef bint build_sections(self, list frames, const uint8_t* header, const uint8_t* at, Py_ssize_t size):
        # What is inside the batches is for the log to check, which looks at every byte of them anyway.
        cdef uint32_t left = (<const GroupHeader*>header).count
        cdef const SectionHeader* fields
        cdef Section section
        while left and size >= SECTION_BYTES:
            fields = <const SectionHeader*>at
            at += SECTION_BYTES
            size -= SECTION_BYTES
            if (fields.batch_bytes > size or fields.level > LEVEL_MAX
                    or 0 < fields.batch_bytes < <uint32_t>BATCH_HEADER_BYTES):
                return False
            section = Section.__new__(Section)
            section.shard = PyBytes_FromStringAndSize(<const char*>fields.shard, 16)
            section.epoch = fields.epoch
            section.level = fields.level
            section.start = fields.start
            section.previous_epoch = fields.previous_epoch
            section.high_watermark = fields.high_watermark
            section.log_start = fields.log_start
            section.leader_end = fields.leader_end
            section.epoch_start = fields.epoch_start
            section.owner = self.block
            section.at = at
            section.size = fields.batch_bytes
            frames.append(section)
            at += fields.batch_bytes
            size -= fields.batch_bytes
            left -= 1
        return left == 0 and size == 0

    cdef bint build_acknowledgements(self, list frames, const uint8_t* header, const uint8_t* at, Py_ssize_t size):
        cdef uint64_t count = (<const GroupHeader*>header).count
        cdef const AcknowledgementEntry* fields
        cdef Acknowledgement made
        if count * ACKNOWLEDGEMENT_BYTES != <uint64_t>size:
            return False
        while size:
            fields = <const AcknowledgementEntry*>at
            if fields.verdict > VERDICT_MAX:
                return False
            made = Acknowledgement.__new__(Acknowledgement)
            made.shard = PyBytes_FromStringAndSize(<const char*>fields.shard, 16)
            made.incarnation = PyBytes_FromStringAndSize(<const char*>fields.incarnation, 16)
            made.epoch = fields.epoch
            made.verdict = fields.verdict
            made.end = fields.end
            made.written = fields.written
            frames.append(made)
            at += ACKNOWLEDGEMENT_BYTES
            size -= ACKNOWLEDGEMENT_BYTES
        return True

    cdef void fail(self, Verdict verdict, FrameStart* start):
        cdef bytes head = PyBytes_FromStringAndSize(<const char*>self.block.bytes + self.begin,
                                                    min(self.end - self.begin, <Py_ssize_t>8))
        cdef object spoken = _another_protocol(head) if self.first else None
        if spoken is not None:
            self.failure = ProtocolMismatch(f"the other side speaks {spoken}", reason=spoken.lower(), theirs=spoken)
        elif verdict == BAD_LENGTH:
            self.failure = ProtocolMismatch(
                f"a frame claims {start.length} bytes, the limit is {self.length_max}", reason="length",
                theirs=start.length, ours=self.length_max)
        else:
            self.failure = ProtocolMismatch(
                f"a frame of kind {start.kind} {_REASONS[verdict][1]}", reason=_REASONS[verdict][0],
                theirs=start.kind)
        self.begin = self.end = self.total = 0


cdef dict _REASONS = {
    BAD_KIND: ("kind", "is not known"),
    BAD_FLAGS: ("flags", "has flags that are not known"),
    BAD_HEADER: ("header", "has a header of the wrong size"),
    BAD_REQUEST: ("request", "has no request number, or one that does not belong"),
    BAD_STATE: ("state", "may not come now"),
    BAD_NAME: ("application", "names no application in UTF-8 of at most 512 bytes"),
    BAD_BATCHES: ("batches", "does not hold the batches that it counts"),
    BAD_SECTIONS: ("sections", "does not hold the sections that it counts"),
    BAD_ACKNOWLEDGEMENTS: ("acknowledgements", "does not hold the acknowledgements that it counts"),
}


cdef object _another_protocol(bytes head):
    # The first bytes of a connection that turned out not to be frames.
    if head[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ", b"HTTP"):
        return "HTTP"
    if len(head) >= 2 and head[0] == 0x16 and head[1] == 0x03:
        return "TLS"
    if head[:4] == b"SSH-":
        return "SSH"
    return None


cdef class FrameWriter:
    """The sending side: frames gathered in order, taken once a turn as buffers for writelines.

    Small payloads are copied beside their header; larger ones are referred to, and must not change until
    they are written: `bytes`, or memory that nobody writes to again.
    """

    def __cinit__(self):
        self.parts = []
        self.group_part = -1

    def __dealloc__(self):
        free(self.scratch)

    def message(self, uint32_t request_id, bytes payload not None):
        """A packed message; request_id 0 is one-way."""
        self.begin(KIND_MESSAGE, request_id, 0, PyBytes_GET_SIZE(payload))
        self.add(payload, PyBytes_GET_SIZE(payload))

    def put(self, uint32_t request_id, bytes shard not None, uint32_t timeout_ms, batch):
        """shard: the 16 bytes of its uuid. batch: any contiguous buffer."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(batch) if PyBytes_CheckExact(batch) else memoryview(batch).nbytes
        cdef PutHeader* header
        _check_uuid(shard)
        header = <PutHeader*>self.begin(KIND_PUT, request_id, PUT_HEADER_BYTES, size)
        memcpy(header.shard, PyBytes_AS_STRING(shard), 16)
        header.timeout_ms = timeout_ms
        header.reserved = 0
        self.add(batch, size)

    def put_ok(self, uint32_t request_id, uint64_t base_sequence, uint64_t append_time_ms, uint32_t epoch,
               uint32_t duplicate=0, uint32_t replicas=0, bint synced=False):
        cdef PutOkHeader* header = <PutOkHeader*>self.begin(KIND_PUT_OK, request_id, PUT_OK_HEADER_BYTES, 0)
        header.base_sequence = base_sequence
        header.append_time_ms = append_time_ms
        header.epoch = epoch
        # duplicate 0, 1, 2 become bits 00, 01, 11
        header.bits = duplicate | (duplicate >> 1) | <uint32_t>synced << 2 | (replicas & 0xFF) << 8

    def fetch(self, uint32_t request_id, bytes shard not None, uint64_t start, uint32_t bytes_max, uint32_t wait_ms,
              uint64_t lease_epoch=0, uint64_t session=0, str application=""):
        cdef bytes name = application.encode()
        cdef Py_ssize_t name_bytes = PyBytes_GET_SIZE(name)
        cdef FetchHeader* header
        _check_uuid(shard)
        if name_bytes > APPLICATION_BYTES_MAX:
            raise ValueError(f"an application's name is {name_bytes} bytes, the limit is {APPLICATION_BYTES_MAX}")
        header = <FetchHeader*>self.begin(KIND_FETCH, request_id, FETCH_HEADER_BYTES + name_bytes, 0)
        memcpy(header.shard, PyBytes_AS_STRING(shard), 16)
        header.start = start
        header.bytes_max = bytes_max
        header.wait_ms = wait_ms
        header.lease_epoch = lease_epoch
        header.session = session
        memcpy(<uint8_t*>header + FETCH_HEADER_BYTES, PyBytes_AS_STRING(name), name_bytes)

    def fetch_ok(self, uint32_t request_id, uint64_t high_watermark, uint64_t log_start, uint64_t log_end,
                 uint64_t next_sequence, list batches not None):
        """batches: whole stored batches, oldest first; their sum must fit the connection's frame limit."""
        cdef Py_ssize_t size = 0
        cdef object batch
        cdef FetchOkHeader* header
        for batch in batches:
            size += len(batch)
        header = <FetchOkHeader*>self.begin(KIND_FETCH_OK, request_id, FETCH_OK_HEADER_BYTES, size)
        header.high_watermark = high_watermark
        header.log_start = log_start
        header.log_end = log_end
        header.next_sequence = next_sequence
        header.batch_count = <uint32_t>len(batches)
        header.reserved = 0
        for batch in batches:
            self.add(batch, len(batch))

    def begin_replicate(self):
        """Begin a frame of sections. Nothing else is written until end_replicate()."""
        assert self.group_part < 0, "one frame at a time"
        (<GroupHeader*>self.begin(KIND_REPLICATE, 0, GROUP_HEADER_BYTES, 0)).reserved = 0
        self.group_part = len(self.parts)
        self.group_at = self.used - START_BYTES - GROUP_HEADER_BYTES
        self.group_bytes = self.group_count = 0

    def section(self, bytes shard not None, uint32_t epoch, uint32_t level, uint64_t start, uint32_t previous_epoch,
                uint64_t high_watermark, uint64_t log_start, uint64_t leader_end, uint64_t epoch_start,
                list batches not None):
        """Add a section to the frame that was begun. batches: whole stored ones, the first begins at `start`.

        Returns (one past the last sequence of the batches, their bytes); `start` and 0 when there are none.
        """
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t batch_bytes
        cdef object batch
        cdef SectionHeader* header
        assert self.group_part >= 0, "begin_replicate() comes first"
        for batch in batches:
            size += PyBytes_GET_SIZE(batch) if PyBytes_CheckExact(batch) else len(batch)
        if self.group_bytes + size + SECTION_BYTES > 0x7FFF0000:
            raise OverflowError(f"a frame cannot carry {self.group_bytes + size} bytes")
        _check_uuid(shard)
        header = <SectionHeader*>self.reserve(SECTION_BYTES)
        memcpy(header.shard, PyBytes_AS_STRING(shard), 16)
        header.epoch = epoch
        header.level = level
        header.start = start
        header.previous_epoch = previous_epoch
        header.batch_bytes = <uint32_t>size
        header.high_watermark = high_watermark
        header.log_start = log_start
        header.leader_end = leader_end
        header.epoch_start = epoch_start
        for batch in batches:
            batch_bytes = PyBytes_GET_SIZE(batch) if PyBytes_CheckExact(batch) else len(batch)
            self.add(batch, batch_bytes)
        self.group_bytes += SECTION_BYTES + size
        self.queued_bytes += SECTION_BYTES + size
        self.group_count += 1
        return (_end_of(batches[len(batches) - 1]) if batches else start), size

    def end_replicate(self):
        """The frame is complete: only now is its length known, and written where it began.

        Returns how many sections it has; a frame without any is taken back.
        """
        cdef uint8_t* at = self.scratch
        cdef uint32_t length = <uint32_t>(START_BYTES - 4 + GROUP_HEADER_BYTES + self.group_bytes)
        assert self.group_part >= 0, "begin_replicate() comes first"
        if not self.group_count:
            self.used = self.group_at
            self.queued_bytes -= START_BYTES + GROUP_HEADER_BYTES
            self.group_part = -1
            return 0
        if self.group_part < len(self.parts):
            at = <uint8_t*>PyBytes_AS_STRING(self.parts[self.group_part])     # made by cut(), seen by nobody yet
        memcpy(at + self.group_at, &length, 4)
        memcpy(at + self.group_at + START_BYTES, &self.group_count, 4)
        self.group_part = -1
        return self.group_count

    def replicated(self, list acknowledgements not None):
        """(shard, incarnation, epoch, verdict, end, written) of each."""
        cdef Py_ssize_t size = len(acknowledgements) * ACKNOWLEDGEMENT_BYTES
        cdef GroupHeader* header = <GroupHeader*>self.begin(KIND_REPLICATED, 0, GROUP_HEADER_BYTES, size)
        cdef AcknowledgementEntry* entry
        cdef bytes shard, incarnation
        cdef uint8_t* at
        header.count = <uint32_t>len(acknowledgements)
        header.reserved = 0
        at = self.reserve(size)
        for shard, incarnation, epoch, verdict, end, written in acknowledgements:
            entry = <AcknowledgementEntry*>at
            _check_uuid(shard)
            _check_uuid(incarnation)
            memcpy(entry.shard, PyBytes_AS_STRING(shard), 16)
            memcpy(entry.incarnation, PyBytes_AS_STRING(incarnation), 16)
            entry.epoch = epoch
            entry.verdict = verdict
            entry.end = end
            entry.written = written
            at += ACKNOWLEDGEMENT_BYTES

    def raw(self, bytes data not None):
        """Bytes that are no frame: the answer to a caller who speaks another protocol."""
        self.queued_bytes += PyBytes_GET_SIZE(data)
        self.add(data, PyBytes_GET_SIZE(data))

    def take(self):
        """Everything gathered, as buffers in order; empty when there is nothing."""
        cdef list parts
        self.cut()
        parts = self.parts
        self.parts = []
        self.queued_bytes = 0
        return parts

    cdef uint8_t* reserve(self, Py_ssize_t count) except NULL:
        # Room for `count` more scratch bytes; good until the next call.
        cdef uint8_t* grown
        cdef Py_ssize_t size
        if self.size - self.used < count:
            size = max(self.size * 2, self.used + count, <Py_ssize_t>1024)
            grown = <uint8_t*>realloc(self.scratch, size)
            if grown == NULL:
                raise MemoryError()
            self.scratch = grown
            self.size = size
        grown = self.scratch + self.used
        self.used += count
        return grown

    cdef uint8_t* begin(self, uint8_t kind, uint32_t request_id, Py_ssize_t header_bytes,
                        Py_ssize_t payload_bytes) except NULL:
        # Writes the frame's start; returns where its header goes.
        cdef FrameStart start
        cdef uint8_t* at
        if payload_bytes > 0x7FFF0000:
            raise OverflowError(f"a frame cannot carry {payload_bytes} bytes")
        start.length = <uint32_t>(START_BYTES - 4 + header_bytes + payload_bytes)
        start.kind = kind
        start.flags = 0
        start.header_bytes = <uint16_t>header_bytes
        start.request_id = request_id
        at = self.reserve(START_BYTES + header_bytes)
        memcpy(at, &start, START_BYTES)
        self.queued_bytes += START_BYTES + header_bytes + payload_bytes
        return at + START_BYTES

    cdef int add(self, object payload, Py_ssize_t size) except -1:
        cdef Py_buffer view
        if size > INLINE_BYTES:
            self.cut()
            self.parts.append(payload)
        elif PyBytes_CheckExact(payload):
            memcpy(self.reserve(size), PyBytes_AS_STRING(payload), size)
        elif size:
            PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
            try:
                memcpy(self.reserve(size), view.buf, size)
            finally:
                PyBuffer_Release(&view)
        return 0

    cdef void cut(self):
        if self.used:
            self.parts.append(PyBytes_FromStringAndSize(<char*>self.scratch, self.used))
            self.used = 0


cdef int _check_uuid(bytes shard) except -1:
    if PyBytes_GET_SIZE(shard) != 16:
        raise ValueError(f"a shard's uuid has 16 bytes, got {PyBytes_GET_SIZE(shard)}")
    return 0


cdef uint64_t _end_of(object batch) except? 0:
    # One past the last sequence of a stored batch.
    cdef Py_buffer view
    cdef uint64_t base
    cdef uint32_t count
    PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
    try:
        if view.len < BATCH_HEADER_BYTES:
            raise ValueError(f"a batch has at least {BATCH_HEADER_BYTES} bytes, got {view.len}")
        memcpy(&base, <const uint8_t*>view.buf + BATCH_BASE_AT, 8)
        memcpy(&count, <const uint8_t*>view.buf + BATCH_COUNT_AT, 4)
    finally:
        PyBuffer_Release(&view)
    return base + count
