"""Put bodies into sealed batches, and the reply, without a Python object an entry.

`PutEntries` scans a body once (bodies.pyx, cbor.pyx) and then answers from what the scan noted: what breaks the
model, how large it is, the sealed batches by shard, and the reply in the format of the request. Data is decoded
straight into the batch. Serves the gateway's Kinesis face.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import msgspec

from streamkit._core.batch cimport (ATTRIBUTE_HASHES, BODY_BYTES_MAX, DELTA_NONE, HASH_BYTES, HEADER_BYTES,
                                    RECORD_HEADER_BYTES, BatchHeader, compress_body, join_batch, record_bytes,
                                    seal_header, widen_hashes, write_record)
from streamkit._core.bodies cimport (ENTRIES_MAX, MEMBERS_MAX, SK_NUMBER_DIGITS, Body, Entry, Member, Text, scan_json,
                                     sk_base64_decode, sk_hash_number, sk_number_next, sk_number_of)
from streamkit._core.cbor cimport cbor_value, scan_cbor
from streamkit._core.framing cimport PutReceipt
from streamkit._core.hashing cimport ShardTable, big_endian, find_shard, md5

cdef extern from "md5_lanes.h" nogil:
    enum: SK_MD5_LANES, SK_MD5_SHORT_MAX
    void sk_md5_lanes(const uint8_t** at, const size_t* size, uint8_t** out)

from streamkit.errors import InvalidUse, WrongShard

cdef enum:
    DATA_BYTES_MAX = 10485760
    KEY_CHARACTERS_MAX = 256
    VIOLATIONS_MAX = 10
    SHOWN_MAX = 1024                 # characters of a value in a message

cdef str NOT_NULL = "Member must not be null"
cdef str HASH_PATTERN = r"0|([1-9]\d{0,38})"
cdef object decode_json = msgspec.json.decode
cdef object encode_json = msgspec.json.encode
cdef uint64_t spread_turn = 0        # of the next record whose hash key is spread; guarded by the GIL


class MalformedBody(ValueError):
    """The body is no JSON or CBOR of the operation's form; its text says what is wrong, without payload."""


cdef inline str text_of(const Text* text):
    return PyUnicode_DecodeUTF8(<const char*>text.at, text.size, NULL)


cdef str shown(const Text* text):
    # As messages show it; cut when it is long.
    told = text_of(text)
    return f"'{told[:SHOWN_MAX]}…'" if len(told) > SHOWN_MAX else f"'{told}'"


cdef size_t characters(const Text* text) noexcept nogil:
    # Of well-formed UTF-8.
    cdef size_t i, count = 0
    for i in range(text.size):
        count += (text.at[i] & 0xC0) != 0x80
    return count


@cython.final
cdef class Packed:
    """One sealed batch and the entries in it. Made by PutEntries.pack. payload_bytes: their data and keys."""

    def __init__(self):
        raise TypeError("PutEntries.pack makes them")

    def __len__(self) -> int:
        """Entries."""
        return self.count

    def __repr__(self) -> str:
        return f"Packed(shard={self.shard}, count={self.count}, {len(self.batch)} bytes)"


@cython.final
cdef class PutEntries:
    """A PutRecord (single) or PutRecords body taken apart where it lies.

    members: every other top-level member, decoded; null ones are absent. payload_bytes: data and keys (UTF-8).
    At most 500 entries are kept; of more only `count` tells. Raises MalformedBody.
    """

    def __cinit__(self, bytes body not None, *, bint cbor, bint single):
        cdef int answer
        cdef Py_ssize_t i
        cdef bint is_cbor = cbor
        self.source = body
        self.cbor = cbor
        self.body.at = <const uint8_t*>PyBytes_AS_STRING(body)
        self.body.end = self.body.at + PyBytes_GET_SIZE(body)
        self.body.scratch_bytes = PyBytes_GET_SIZE(body)
        self.body.single = single
        self.body.entries = <Entry*>malloc((1 if single else ENTRIES_MAX) * sizeof(Entry))
        self.body.members = <Member*>malloc(MEMBERS_MAX * sizeof(Member))
        if self.body.entries == NULL or self.body.members == NULL:
            raise MemoryError
        with nogil:
            answer = scan_cbor(&self.body) if is_cbor else scan_json(&self.body)
        if answer:
            reason = (<bytes>self.body.reason).decode()
            raise MalformedBody(f"{reason}, at byte {self.body.at - <const uint8_t*>PyBytes_AS_STRING(body)}")
        self.kept = min(<Py_ssize_t>self.body.count, ENTRIES_MAX)
        for i in range(self.kept):
            self.payload_bytes += self.body.entries[i].data_bytes + self.body.entries[i].key.size
        self.members = self.other_members()

    def __dealloc__(self):
        free(self.body.entries)
        free(self.body.members)
        free(self.body.scratch)

    cdef dict other_members(self):
        cdef Member* member
        cdef size_t i
        found = {}
        for i in range(self.body.member_count):
            member = &self.body.members[i]
            name = text_of(&member.name)
            try:
                if self.cbor:
                    value = cbor_value(member.value.at, member.value.size)
                else:
                    value = decode_json(PyBytes_FromStringAndSize(<const char*>member.value.at, member.value.size))
            except (ValueError, RecursionError) as cause:
                raise MalformedBody(f"{name[:80]} cannot be read") from cause
            if value is None:
                found.pop(name, None)
            else:
                found[name] = value
        return found

    @property
    def count(self) -> int:
        """Entries in the body, also when they are more than 500; 1 for a single one."""
        return self.body.count

    @property
    def has_records(self) -> bool:
        """False: Records (for a single one: Data) is missing or null."""
        return self.body.has_records

    def violations(self, *, bint key_optional=False) -> list:
        """What breaks the model in the entries, at most ten: (path, shown value, constraint).

        The value is shown as messages show it: quoted and cut when long, or null. How many entries there are is not
        looked at.
        """
        cdef Py_ssize_t i
        cdef Entry* entry
        cdef uint8_t digest[16]
        found = []
        for i in range(self.kept):
            if len(found) >= VIOLATIONS_MAX:
                break
            entry = &self.body.entries[i]
            if entry.data.at == NULL:
                found.append((self.path(i, "data"), "null", NOT_NULL))
            elif entry.data_bytes > DATA_BYTES_MAX:
                found.append((self.path(i, "data"), f"'{entry.data_bytes} bytes'",
                              f"Member must have length less than or equal to {DATA_BYTES_MAX}"))
            if entry.key.at == NULL:
                if not key_optional:
                    found.append((self.path(i, "partitionKey"), "null", NOT_NULL))
            elif entry.key.size == 0:
                found.append((self.path(i, "partitionKey"), "''", "Member must have length greater than or equal to 1"))
            elif entry.key.size > KEY_CHARACTERS_MAX and characters(&entry.key) > KEY_CHARACTERS_MAX:
                found.append((self.path(i, "partitionKey"), shown(&entry.key),
                              f"Member must have length less than or equal to {KEY_CHARACTERS_MAX}"))
            if entry.hash.at != NULL and sk_hash_number(entry.hash.at, entry.hash.size, digest) < 0:
                found.append((self.path(i, "explicitHashKey"), shown(&entry.hash),
                              f"Member must satisfy regular expression pattern: {HASH_PATTERN}"))
        return found[:VIOLATIONS_MAX]

    cdef str path(self, Py_ssize_t entry, str name):
        return name if self.body.single else f"records.{entry + 1}.member.{name}"

    def bad_hash_key(self):
        """The first ExplicitHashKey that is a number of 2**128 or more, as text; None when there is none."""
        cdef Py_ssize_t i
        cdef Entry* entry
        cdef uint8_t digest[16]
        for i in range(self.kept):
            entry = &self.body.entries[i]
            if entry.hash.at != NULL and sk_hash_number(entry.hash.at, entry.hash.size, digest) == 1:
                return text_of(&entry.hash)
        return None

    def largest(self) -> int:
        """Bytes of the largest entry, data and key; 0 when there is none."""
        cdef Py_ssize_t i
        cdef size_t size, most = 0
        for i in range(self.kept):
            size = self.body.entries[i].data_bytes + self.body.entries[i].key.size
            most = max(most, size)
        return most

    def pack(self, ShardTable table not None, *, int codec, uint32_t map_version, again=None,
             bint automatic=False) -> list:
        """Sealed batches, one or more a shard; the entries of one shard keep their order.

        codec: 0 none, 1 lz4, 2 zstd; left out where it saves nothing. again: Packed of an earlier call whose entries
        alone are packed, for a map that has changed. automatic: hash keys are spread evenly whatever the keys are;
        those of entries without a key always are. Raises WrongShard when no shard takes an entry, InvalidUse for
        bodies with violations.
        """
        cdef Plan plan
        cdef uint16_t chosen[ENTRIES_MAX]
        cdef int32_t i, bad
        cdef int count = self.choose(again, chosen)
        cdef Group* group
        cdef bytes whole
        global spread_turn
        cdef uint64_t turn = spread_turn
        spread_turn += count
        plan.routed = <Routed*>malloc((self.kept or 1) * sizeof(Routed))
        plan.groups = <Group*>malloc((count or 1) * sizeof(Group))
        try:
            if plan.routed == NULL or plan.groups == NULL:
                raise MemoryError
            with nogil:
                bad = route(&self.body, table, chosen, count, automatic, turn, &plan)
            if bad == -2:
                raise InvalidUse("a hash key or the size of an entry is impossible", try_="look at violations() first")
            if bad >= 0:
                raise WrongShard("no open shard takes this hash key", try_="try again; the shard map is changing")
            batches = []
            for i in range(plan.group_count):
                group = &plan.groups[i]
                whole = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + group.size)
                batches.append(whole)
                group.at = <uint8_t*>PyBytes_AS_STRING(whole)
                group.header.map_version = map_version
            with nogil:
                self.seal_groups(&plan)
            return [finish(&plan, i, batches[i], codec) for i in range(plan.group_count)]
        finally:
            free(plan.routed)
            free(plan.groups)

    cdef int choose(self, again, uint16_t* chosen) except -1:
        # Which entries to pack, and how many.
        cdef Py_ssize_t i, count = 0
        cdef Packed packed
        if <Py_ssize_t>self.body.count > self.kept:
            raise InvalidUse(f"a body has at most {ENTRIES_MAX} entries, got {self.body.count}",
                             try_="look at count first")
        if again is None:
            for i in range(self.kept):
                chosen[i] = <uint16_t>i
            return <int>self.kept
        for packed in again:
            if count + packed.count > self.kept:
                raise InvalidUse("these batches hold more entries than the body", try_="pass each batch once")
            memcpy(chosen + count, PyBytes_AS_STRING(packed.entries), packed.count * sizeof(uint16_t))
            for i in range(count, count + packed.count):
                if chosen[i] >= self.kept:
                    raise InvalidUse("this batch is of another body", try_="pass what pack() gave")
            count += packed.count
        return <int>count

    cdef int seal_groups(self, Plan* plan) noexcept nogil:
        # The memory of every group is there.
        cdef int32_t i, index
        cdef uint32_t row, end
        cdef Group* group
        cdef Entry* entry
        cdef uint8_t* at
        cdef uint8_t* first_record
        cdef uint8_t* ends
        for i in range(plan.group_count):
            group = &plan.groups[i]
            ends = group.at + HEADER_BYTES
            first_record = ends + 4 * <size_t>group.count
            at = first_record
            index = group.first
            for row in range(group.count):
                entry = &self.body.entries[index]
                at = write_record(at, entry.key.at, entry.key.size, NULL, 0, NULL, 0, DELTA_NONE,
                                  plan.routed[index].digest if group.hashes else NULL)
                if entry.data_bytes:
                    if self.cbor:
                        memcpy(at, entry.data.at, entry.data_bytes)
                    else:
                        sk_base64_decode(at, entry.data.at, entry.data.size)
                    at += entry.data_bytes
                end = <uint32_t>(at - first_record)
                memcpy(ends + 4 * <size_t>row, &end, 4)
                index = plan.routed[index].next_entry
            group.header.event_time_delta_max = DELTA_NONE
            group.header.attributes = ATTRIBUTE_HASHES if group.hashes else 0
            group.header.record_count = group.count
            group.header.raw_bytes = <uint32_t>group.size
            seal_header(group.at, &group.header, HEADER_BYTES + group.size)
        return 0

    def reply(self, list packed not None, outcomes not None, origins not None, *, str encryption=None) -> bytes:
        """The reply's body in the request's format.

        packed: all the batches that hold the entries, in any order, each entry in exactly one of them. outcomes:
        beside them, a PutReceipt or (ErrorCode, ErrorMessage). origins: by shard index, (ordinal, created_ms).
        Raises InvalidUse when an entry has no outcome, or when a single one has failed.
        """
        cdef Py_ssize_t i, j, count = len(packed)
        cdef uint16_t line_of[ENTRIES_MAX]
        cdef const uint16_t* members
        cdef Packed one
        cdef Line* lines
        cdef int64_t failed = 0
        if len(outcomes) != count or self.kept != <Py_ssize_t>self.body.count or count > ENTRIES_MAX:
            raise InvalidUse("there is one outcome for each batch", try_="pass them side by side")
        memset(line_of, 0xFF, sizeof(line_of))
        texts = []                       # keeps what the lines point to
        lines = <Line*>calloc(count or 1, sizeof(Line))
        if lines == NULL:
            raise MemoryError
        try:
            for i in range(count):
                one = packed[i]
                members = <const uint16_t*>PyBytes_AS_STRING(one.entries)
                for j in range(one.count):
                    if members[j] >= self.kept or line_of[members[j]] != 0xFFFF:
                        raise InvalidUse("an entry has two outcomes", try_="pass each batch once")
                    line_of[members[j]] = <uint16_t>i
                failed += fill_line(&lines[i], one, outcomes[i], origins, self.cbor, texts)
            for j in range(self.kept):
                if line_of[j] == 0xFFFF:
                    raise InvalidUse(f"entry {j} has no outcome", try_="pass every batch that pack() gave")
            if self.body.single:
                if failed or self.kept != 1:
                    raise InvalidUse("a single record that failed has no reply", try_="answer with the error")
                return single_reply(&lines[0], encryption, self.cbor)
            if self.cbor:
                opening, closing = cbor_frame(failed, self.kept, encryption)
            else:
                opening, closing = json_frame(failed, encryption)
            return self.write_reply(lines, line_of, opening, closing)
        finally:
            free(lines)

    cdef bytes write_reply(self, Line* lines, const uint16_t* line_of, bytes opening, bytes closing):
        cdef Py_ssize_t j, comma = 0 if self.cbor else 1
        cdef size_t size = len(opening) + len(closing)
        cdef Line* line
        cdef bytes made
        cdef uint8_t* out
        for j in range(self.kept):
            line = &lines[line_of[j]]
            size += line.head_size + line.tail_size + (SK_NUMBER_DIGITS if line.tail != NULL else 0)
        if self.kept:
            size += comma * (self.kept - 1)
        made = PyBytes_FromStringAndSize(NULL, size)
        out = put(<uint8_t*>PyBytes_AS_STRING(made), <const uint8_t*>PyBytes_AS_STRING(opening), len(opening))
        for j in range(self.kept):
            if comma and j:
                out[0] = 0x2C
                out += 1
            line = &lines[line_of[j]]
            out = put(out, line.head, line.head_size)
            if line.tail != NULL:
                memcpy(out, line.number.text, SK_NUMBER_DIGITS)
                sk_number_next(&line.number)
                out = put(out + SK_NUMBER_DIGITS, line.tail, line.tail_size)
        out = put(out, <const uint8_t*>PyBytes_AS_STRING(closing), len(closing))
        assert <size_t>(out - <uint8_t*>PyBytes_AS_STRING(made)) == size, "a reply fills the memory counted for it"
        return made


# ---- routing ---------------------------------------------------------------------------------------------


cdef inline void spread(uint64_t turn, uint8_t* digest) noexcept nogil:
    # Steps of the golden section: however many there were, they divide the hash keys almost evenly.
    cdef uint64_t high = big_endian((turn + 1) * <uint64_t>0x9E3779B97F4A7C15)
    memcpy(digest, &high, 8)
    memset(digest + 8, 0, 8)


cdef int hash_entries(const Body* body, const uint16_t* chosen, int count, bint automatic, uint64_t turn,
                      Plan* plan) noexcept nogil:
    # Fills in the hash keys. 0, or -2 for one that is no number of 128 bits.
    cdef const uint8_t* at[SK_MD5_LANES]
    cdef size_t size[SK_MD5_LANES]
    cdef uint8_t* out[SK_MD5_LANES]
    cdef const Entry* entry
    cdef Routed* routed
    cdef int i, waiting = 0
    for i in range(count):
        entry = &body.entries[chosen[i]]
        routed = &plan.routed[chosen[i]]
        routed.explicit_hash = automatic or entry.hash.at != NULL or entry.key.size == 0
        if automatic or (entry.hash.at == NULL and entry.key.size == 0):
            spread(turn + <uint64_t>i, routed.digest)
        elif entry.hash.at != NULL:
            if sk_hash_number(entry.hash.at, entry.hash.size, routed.digest):
                return -2
        elif entry.key.size > SK_MD5_SHORT_MAX:
            md5(entry.key.at, entry.key.size, routed.digest)
        else:
            at[waiting] = entry.key.at
            size[waiting] = entry.key.size
            out[waiting] = routed.digest
            waiting += 1
            if waiting == SK_MD5_LANES:
                sk_md5_lanes(at, size, out)
                waiting = 0
    for i in range(waiting):
        md5(at[i], size[i], out[i])
    return 0


cdef int route(const Body* body, ShardTable table, const uint16_t* chosen, int count, bint automatic, uint64_t turn,
               Plan* plan) noexcept nogil:
    # Fills the plan. -1 when done, -2 for an impossible entry, else the index of one that no shard takes.
    cdef int32_t slots[GROUP_SLOTS]      # the open group of a shard, plus one
    cdef const Entry* entry
    cdef Routed* routed
    cdef Group* group
    cdef uint32_t slot
    cdef int i, index
    cdef size_t size
    memset(slots, 0, sizeof(slots))
    plan.group_count = 0
    if hash_entries(body, chosen, count, automatic, turn, plan):
        return -2
    for i in range(count):
        index = chosen[i]
        entry = &body.entries[index]
        routed = &plan.routed[index]
        routed.next_entry = -1
        routed.shard = find_shard(table.ranges, table.count, routed.digest)
        if routed.shard < 0:
            return index
        size = entry.data_bytes + entry.key.size
        if entry.key.size > 65535 or entry.data_bytes > DATA_BYTES_MAX or 4 + record_bytes(
                entry.key.size, 0, entry.data_bytes, True) > BODY_BYTES_MAX:
            return -2
        slot = <uint32_t>routed.shard & (GROUP_SLOTS - 1)
        while slots[slot] and plan.groups[slots[slot] - 1].shard != routed.shard:
            slot = (slot + 1) & (GROUP_SLOTS - 1)
        group = &plan.groups[slots[slot] - 1] if slots[slot] else NULL
        if group == NULL or group.count == BATCH_RECORDS_LIMIT or group_size(
                group.count + 1, group.bytes + size, True) > BATCH_BYTES_LIMIT:
            group = &plan.groups[plan.group_count]
            plan.group_count += 1
            slots[slot] = plan.group_count
            memset(group, 0, sizeof(Group))
            memset(group.header.hash_low, 0xFF, HASH_BYTES)
            group.shard = routed.shard
            group.first = index
        else:
            plan.routed[group.last].next_entry = index
        group.last = index
        group.count += 1
        group.bytes += size
        group.hashes |= routed.explicit_hash
        group.size = group_size(group.count, group.bytes, group.hashes)
        widen_hashes(&group.header, routed.digest)
    return -1


cdef inline size_t group_size(size_t count, size_t payload, bint hashes) noexcept nogil:
    return payload + count * (4 + RECORD_HEADER_BYTES + (HASH_BYTES if hashes else 0))


cdef Packed finish(Plan* plan, int32_t number, bytes whole, int codec):
    cdef Group* group = &plan.groups[number]
    cdef Packed made = Packed.__new__(Packed)
    cdef uint16_t* members
    cdef uint32_t i
    cdef int32_t index = group.first
    cdef bytes body
    made.shard = group.shard
    made.count = group.count
    made.payload_bytes = group.bytes
    made.batch = whole
    made.entries = PyBytes_FromStringAndSize(NULL, group.count * sizeof(uint16_t))
    members = <uint16_t*>PyBytes_AS_STRING(made.entries)
    for i in range(group.count):
        members[i] = <uint16_t>index
        index = plan.routed[index].next_entry
    if codec:
        body = compress_body(codec, memoryview(whole)[HEADER_BYTES:])
        if body is not None:
            group.header.attributes |= <uint16_t>codec
            made.batch = join_batch(&group.header, body)
    return made


# ---- replying --------------------------------------------------------------------------------------------


cdef inline uint8_t* put(uint8_t* out, const uint8_t* at, size_t size) noexcept nogil:
    memcpy(out, at, size)
    return out + size


cdef bytes cbor_head_of(int major, uint64_t value):
    if value < 24:
        return bytes([major << 5 | value])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if size == 8 or value >> (8 * <int>size) == 0:
            return bytes([major << 5 | info]) + (<object>value).to_bytes(size, "big")


cdef bytes cbor_text(str text):
    cdef bytes encoded = text.encode()
    return cbor_head_of(3, len(encoded)) + encoded


cdef bytes HEAD_JSON = b'{"SequenceNumber":"'
cdef bytes HEAD_CBOR = cbor_head_of(5, 2) + cbor_text("SequenceNumber") + cbor_head_of(3, SK_NUMBER_DIGITS)
cdef bytes SHARD_CBOR = cbor_text("ShardId")


cdef int fill_line(Line* line, Packed packed, outcome, origins, bint cbor, list texts) except -1:
    # Returns how many entries have failed.
    cdef PutReceipt receipt
    cdef bytes head, tail = None
    if isinstance(outcome, tuple):
        code, message = outcome
        if cbor:
            head = (cbor_head_of(5, 2) + cbor_text("ErrorCode") + cbor_text(code) + cbor_text("ErrorMessage")
                    + cbor_text(message))
        else:
            head = encode_json({"ErrorCode": code, "ErrorMessage": message})
    else:
        receipt = outcome
        ordinal, created_ms = origins[packed.shard]
        shard = f"shardId-{ordinal:012d}"
        head = HEAD_CBOR if cbor else HEAD_JSON
        tail = SHARD_CBOR + cbor_text(shard) if cbor else b'","ShardId":"' + shard.encode() + b'"}'
        sk_number_of(&line.number, receipt.base_sequence + 1, ordinal, created_ms // 1000,
                     receipt.append_time_ms // 1000)
    texts.append((head, tail))
    line.head = <const uint8_t*>PyBytes_AS_STRING(head)
    line.head_size = PyBytes_GET_SIZE(head)
    if tail is None:
        return packed.count
    line.tail = <const uint8_t*>PyBytes_AS_STRING(tail)
    line.tail_size = PyBytes_GET_SIZE(tail)
    return 0


cdef tuple json_frame(failed, encryption):
    opening = f'{{"FailedRecordCount":{failed},"Records":['.encode()
    return opening, b"]}" if encryption is None else b'],"EncryptionType":' + encode_json(encryption) + b"}"


cdef tuple cbor_frame(failed, Py_ssize_t count, encryption):
    opening = cbor_head_of(5, 2 if encryption is None else 3) + cbor_text("FailedRecordCount") + cbor_head_of(0, failed)
    if encryption is not None:
        opening += cbor_text("EncryptionType") + cbor_text(encryption)
    return opening + cbor_text("Records") + cbor_head_of(4, count), b""


cdef bytes single_reply(Line* line, encryption, bint cbor):
    # The line is a whole structure; the encryption goes into it.
    cdef bytes number = line.number.text[:SK_NUMBER_DIGITS]
    cdef bytes head = line.head[:line.head_size]
    cdef bytes tail = line.tail[:line.tail_size]
    if encryption is None:
        return head + number + tail
    if cbor:
        return cbor_head_of(5, 3) + head[1:] + number + tail + cbor_text("EncryptionType") + cbor_text(encryption)
    return head + number + tail[:len(tail) - 1] + b',"EncryptionType":' + encode_json(encryption) + b"}"
