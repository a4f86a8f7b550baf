/* Text that a gateway reads and writes for every record: the plain run of a JSON string, base64 (RFC 4648, strict),
 * decimal numbers of 186 bits, and hash keys.
 *
 * Ours because kernels need it without the GIL and straight from and into a batch; tests compare it with Python's
 * base64, json and int. Nothing here allocates; sizes were checked by whoever calls. x86-64 runs 16 bytes at a time
 * where it can (SSE2 always, SSSE3 when found), every other machine the plain loops. */
#ifndef STREAMKIT_TEXT_H
#define STREAMKIT_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
static int sk_text_wide;

__attribute__((constructor)) static void sk_text_prepare(void) { sk_text_wide = __builtin_cpu_supports("ssse3"); }
#endif

/* ---- JSON strings ---------------------------------------------------------------------------------------- */

/* The first byte of at..end that may not lie as it is in a JSON string, or is not ASCII: a quotation mark, a
 * backslash, a control character, or 0x80 and above; `end` when there is none. */
static inline const uint8_t *sk_plain_end(const uint8_t *at, const uint8_t *end) {
#if defined(__x86_64__)
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), blank = _mm_set1_epi8(' ');
    while (end - at >= 16) {
        __m128i text = _mm_loadu_si128((const __m128i *)at);
        /* Signed: bytes of 0x80 and above are less than a blank as well. */
        __m128i found = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(text, quote), _mm_cmpeq_epi8(text, slash)),
                                     _mm_cmplt_epi8(text, blank));
        int mask = _mm_movemask_epi8(found);
        if (mask) return at + __builtin_ctz((unsigned)mask);
        at += 16;
    }
#endif
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\') at++;
    return at;
}

/* Bytes that UTF-8 takes inside a JSON string. */
static inline size_t sk_escaped_size(const uint8_t *at, size_t size) {
    const uint8_t *end = at + size;
    size_t more = 0;
    while ((at = sk_plain_end(at, end)) < end) {
        more += *at >= 0x80 ? 0 : *at >= 0x20 ? 1 : 5;
        at++;
    }
    return size + more;
}

/* UTF-8 as the inside of a JSON string. Returns one past the sk_escaped_size bytes. */
static inline uint8_t *sk_escape(uint8_t *out, const uint8_t *at, size_t size) {
    static const char hex[] = "0123456789abcdef";
    const uint8_t *end = at + size;
    while (at < end) {
        const uint8_t *stop = sk_plain_end(at, end);
        memcpy(out, at, (size_t)(stop - at));
        out += stop - at;
        if (stop == end) break;
        if (*stop >= 0x80) {
            *out++ = *stop;
        } else if (*stop == '"' || *stop == '\\') {
            *out++ = '\\';
            *out++ = *stop;
        } else {
            memcpy(out, "\\u00", 4);
            out[4] = (uint8_t)hex[*stop >> 4];
            out[5] = (uint8_t)hex[*stop & 15];
            out += 6;
        }
        at = stop + 1;
    }
    return out;
}

/* ---- base64 ---------------------------------------------------------------------------------------------- */

static uint8_t sk_base64_value[256]; /* 0..63, or 64 for what is no digit */
static const char sk_base64_digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

__attribute__((constructor)) static void sk_base64_fill(void) {
    memset(sk_base64_value, 64, sizeof sk_base64_value);
    for (int i = 0; i < 64; i++) sk_base64_value[(uint8_t)sk_base64_digit[i]] = (uint8_t)i;
}

#if defined(__x86_64__)
/* What to add to each of 16 characters to get its value: one entry for each high half of a byte, where '/' counts as
 * a class of its own. */
__attribute__((target("ssse3"))) static inline __m128i sk_base64_values(__m128i text) {
    const __m128i add = _mm_setr_epi8(0, 16, 19, 4, -65, -65, -71, -71, 0, 0, 0, 0, 0, 0, 0, 0);
    __m128i high = _mm_and_si128(_mm_srli_epi32(text, 4), _mm_set1_epi8(15));
    __m128i slash = _mm_cmpeq_epi8(text, _mm_set1_epi8('/'));
    return _mm_add_epi8(text, _mm_shuffle_epi8(add, _mm_add_epi8(high, slash)));
}

__attribute__((target("ssse3"))) static size_t sk_base64_checked_wide(const uint8_t *at, size_t size) {
    /* A byte is a digit when the sets that its low half may belong to include its high half's. Bits: 1 stands for
     * high half 2, 2 for 3, 4 for 4 and 6, 8 for 5 and 7; low halves that are not allowed there carry the bit. */
    const __m128i wrong_low = _mm_setr_epi8(0x15, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x13, 0x1A,
                                            0x1B, 0x1B, 0x1B, 0x1A);
    const __m128i by_high = _mm_setr_epi8(0x10, 0x10, 0x01, 0x02, 0x04, 0x08, 0x04, 0x08, 0x10, 0x10, 0x10, 0x10,
                                          0x10, 0x10, 0x10, 0x10);
    const __m128i half = _mm_set1_epi8(15);
    size_t done = 0;
    for (; size - done >= 16; done += 16) {
        __m128i text = _mm_loadu_si128((const __m128i *)(at + done));
        __m128i low = _mm_shuffle_epi8(wrong_low, _mm_and_si128(text, half));
        __m128i high = _mm_shuffle_epi8(by_high, _mm_and_si128(_mm_srli_epi32(text, 4), half));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(low, high), _mm_setzero_si128())) != 0xFFFF) break;
    }
    return done;
}

__attribute__((target("ssse3"))) static size_t sk_base64_decode_wide(uint8_t *out, const uint8_t *at, size_t size) {
    const __m128i gather = _mm_setr_epi8(2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1);
    size_t done = 0;
    /* 16 bytes are stored for 12 that count: while 24 characters are left, the bytes behind them are ours to
     * overwrite even when the last two are padding. */
    for (; size - done >= 24; done += 16, out += 12) {
        __m128i values = sk_base64_values(_mm_loadu_si128((const __m128i *)(at + done)));
        __m128i pairs = _mm_maddubs_epi16(values, _mm_set1_epi32(0x01400140));
        __m128i threes = _mm_madd_epi16(pairs, _mm_set1_epi32(0x00011000));
        _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(threes, gather));
    }
    return done;
}

__attribute__((target("ssse3"))) static size_t sk_base64_encode_wide(uint8_t *out, const uint8_t *at, size_t size) {
    const __m128i spread = _mm_setr_epi8(1, 0, 2, 1, 4, 3, 5, 4, 7, 6, 8, 7, 10, 9, 11, 10);
    /* What to add to a value to get its character, by class: 13 for A-Z, 0 for a-z, 1..10 for digits, 11 and 12. */
    const __m128i add = _mm_setr_epi8('a' - 26, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52, '0' - 52,
                                      '0' - 52, '0' - 52, '0' - 52, '+' - 62, '/' - 63, 'A', 0, 0);
    size_t done = 0;
    for (; size - done >= 16; done += 12, out += 16) { /* reads 16 bytes, of which 12 count */
        __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(at + done)), spread);
        __m128i first = _mm_mulhi_epu16(_mm_and_si128(bytes, _mm_set1_epi32(0x0FC0FC00)), _mm_set1_epi32(0x04000040));
        __m128i second = _mm_mullo_epi16(_mm_and_si128(bytes, _mm_set1_epi32(0x003F03F0)), _mm_set1_epi32(0x01000010));
        __m128i values = _mm_or_si128(first, second);
        __m128i class = _mm_subs_epu8(values, _mm_set1_epi8(51));
        class = _mm_or_si128(class, _mm_and_si128(_mm_cmpgt_epi8(_mm_set1_epi8(26), values), _mm_set1_epi8(13)));
        _mm_storeu_si128((__m128i *)out, _mm_add_epi8(values, _mm_shuffle_epi8(add, class)));
    }
    return done;
}
#endif

/* Bytes that `size` characters of base64 stand for; -1 when they are not base64: the length is a multiple of four,
 * padding comes only at the end. */
static inline ptrdiff_t sk_base64_check(const uint8_t *at, size_t size) {
    size_t done = 0, digits = size;
    if (size == 0) return 0;
    if (size % 4) return -1;
    if (at[size - 1] == '=') digits -= at[size - 2] == '=' ? 2 : 1;
#if defined(__x86_64__)
    if (sk_text_wide) done = sk_base64_checked_wide(at, digits);
#endif
    for (; done < digits; done++)
        if (sk_base64_value[at[done]] == 64) return -1;
    return (ptrdiff_t)(size / 4 * 3 - (size - digits));
}

/* What sk_base64_check has passed, as bytes. Writes no byte beyond them. */
static inline void sk_base64_decode(uint8_t *out, const uint8_t *at, size_t size) {
    const uint8_t *value = sk_base64_value, *end = at + size;
    size_t done;
    uint32_t bits;
    if (size == 0) return;
#if defined(__x86_64__)
    if (sk_text_wide) {
        done = sk_base64_decode_wide(out, at, size);
        at += done;
        out += done / 4 * 3;
    }
#endif
    for (; end - at > 4; at += 4, out += 3) {
        bits = (uint32_t)value[at[0]] << 18 | (uint32_t)value[at[1]] << 12 | (uint32_t)value[at[2]] << 6 | value[at[3]];
        out[0] = (uint8_t)(bits >> 16);
        out[1] = (uint8_t)(bits >> 8);
        out[2] = (uint8_t)bits;
    }
    bits = (uint32_t)value[at[0]] << 18 | (uint32_t)value[at[1]] << 12;
    out[0] = (uint8_t)(bits >> 16);
    if (at[2] == '=') return;
    bits |= (uint32_t)value[at[2]] << 6;
    out[1] = (uint8_t)(bits >> 8);
    if (at[3] == '=') return;
    out[2] = (uint8_t)(bits | value[at[3]]);
}

/* (size + 2) / 3 * 4 characters; returns one past them. */
static inline uint8_t *sk_base64_encode(uint8_t *out, const uint8_t *at, size_t size) {
    const char *digit = sk_base64_digit;
    size_t done = 0;
#if defined(__x86_64__)
    if (sk_text_wide) {
        done = sk_base64_encode_wide(out, at, size);
        out += done / 3 * 4;
    }
#endif
    for (; size - done >= 3; done += 3, out += 4) {
        uint32_t bits = (uint32_t)at[done] << 16 | (uint32_t)at[done + 1] << 8 | at[done + 2];
        out[0] = (uint8_t)digit[bits >> 18];
        out[1] = (uint8_t)digit[bits >> 12 & 63];
        out[2] = (uint8_t)digit[bits >> 6 & 63];
        out[3] = (uint8_t)digit[bits & 63];
    }
    if (size > done) {
        uint32_t bits = (uint32_t)at[done] << 16 | (size - done == 2 ? (uint32_t)at[done + 1] << 8 : 0);
        out[0] = (uint8_t)digit[bits >> 18];
        out[1] = (uint8_t)digit[bits >> 12 & 63];
        out[2] = (uint8_t)(size - done == 2 ? digit[bits >> 6 & 63] : '=');
        out[3] = '=';
        out += 4;
    }
    return out;
}

/* ---- numbers --------------------------------------------------------------------------------------------- */

/* A sequence number as model/sequence.py draws it: 56 digits, of which the records of a batch differ by 2**80 each.
 * Seven limbs of eight digits, least significant first, and their text, of which only what changed is written. */
enum { SK_NUMBER_DIGITS = 56, SK_NUMBER_LIMBS = 7 };
typedef struct {
    uint32_t limbs[SK_NUMBER_LIMBS];
    uint8_t text[SK_NUMBER_DIGITS];
} sk_number;

static inline void sk_number_write(sk_number *number, int limb) {
    /* Eight digits at once: halves of four, quarters of two, then one digit a byte. */
    uint64_t value = number->limbs[limb];
    uint64_t fours = value / 10000 | (value % 10000) << 32;
    uint64_t tens = (fours * 10486 >> 20) & 0x0000007F0000007FULL; /* / 100 */
    uint64_t twos = tens | (fours - tens * 100) << 16;
    uint64_t high = (twos * 103 >> 10) & 0x000F000F000F000FULL; /* / 10 */
    uint64_t digits = (high | (twos - high * 10) << 8) | 0x3030303030303030ULL;
    memcpy(number->text + 8 * (SK_NUMBER_LIMBS - 1 - limb), &digits, 8);
}

/* From three words of 64 bits, least significant first. */
static inline void sk_number_set(sk_number *number, uint64_t low, uint64_t middle, uint64_t high) {
    uint32_t words[6] = {(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)middle, (uint32_t)(middle >> 32),
                         (uint32_t)high, (uint32_t)(high >> 32)};
    for (int limb = 0; limb < SK_NUMBER_LIMBS; limb++) {
        uint64_t rest = 0;
        for (int k = 5; k >= 0; k--) {
            rest = rest << 32 | words[k];
            words[k] = (uint32_t)(rest / 100000000);
            rest %= 100000000;
        }
        number->limbs[limb] = (uint32_t)rest;
        sk_number_write(number, limb);
    }
}

/* The number of the record `index` - 1 of a shard; the fields as in model/sequence.py. */
static inline void sk_number_of(sk_number *number, uint64_t index, uint64_t ordinal, uint64_t created_s,
                                uint64_t arrived_s) {
    created_s &= 0xFFFFFFFFFULL;
    arrived_s &= 0xFFFFFFFFFULL;
    sk_number_set(number, arrived_s << 36 | (ordinal & 0x7FFFFFFF) << 4 | 2, index << 16 | arrived_s >> 28,
                  2ULL << 56 | created_s << 20 | (ordinal & 15) << 16 | index >> 48);
}

/* The next record's: plus 2**80. */
static inline void sk_number_next(sk_number *number) {
    static const uint32_t step[SK_NUMBER_LIMBS] = {74706176, 96146291, 20892581, 1, 0, 0, 0};
    uint32_t carry = 0;
    for (int limb = 0; limb < SK_NUMBER_LIMBS; limb++) {
        uint32_t value = number->limbs[limb] + step[limb] + carry;
        if (limb > 3 && !carry) break;
        carry = value >= 100000000;
        number->limbs[limb] = carry ? value - 100000000 : value;
        sk_number_write(number, limb);
    }
}

/* An ExplicitHashKey as 16 bytes, big-endian: 0 when read, 1 when it is 2**128 or more, -1 when it is no number
 * without leading zeros of at most 39 digits. */
static inline int sk_hash_number(const uint8_t *at, size_t size, uint8_t *out) {
    unsigned __int128 value = 0, most = ~(unsigned __int128)0;
    if (size == 0 || size > 39 || (at[0] == '0' && size > 1)) return -1;
    for (size_t i = 0; i < size; i++)
        if (at[i] < '0' || at[i] > '9') return -1;
    for (size_t i = 0; i < size; i++) {
        unsigned digit = at[i] - '0';
        if (value > (most - digit) / 10) return 1;
        value = value * 10 + digit;
    }
    for (int i = 15; i >= 0; i--, value >>= 8) out[i] = (uint8_t)value;
    return 0;
}

#endif
