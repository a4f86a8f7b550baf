/* MD5, as in RFC 1321, for partition keys: hash key = MD5(key), so that Kinesis data keep their shards.
 *
 * It guards no secret. Ours because routing hashes a key a record without the GIL; tests compare it with
 * hashlib. See docs/decisions/0003. */
#ifndef STREAMKIT_MD5_H
#define STREAMKIT_MD5_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static const uint32_t sk_md5_sines[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};

#define SK_MD5_F(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))
#define SK_MD5_G(x, y, z) (((x) & (z)) + ((y) & ~(z)))
#define SK_MD5_H(x, y, z) ((x) ^ (y) ^ (z))
#define SK_MD5_I(x, y, z) ((y) ^ ((x) | ~(z)))
#define SK_MD5_STEP(f, a, b, c, d, k, s, i) \
    a += f(b, c, d) + word[k] + sk_md5_sines[i]; \
    a = (a << s | a >> (32 - s)) + b;
#define SK_MD5_FOUR(f, k0, k1, k2, k3, s0, s1, s2, s3, i) \
    SK_MD5_STEP(f, a, b, c, d, k0, s0, i) \
    SK_MD5_STEP(f, d, a, b, c, k1, s1, i + 1) \
    SK_MD5_STEP(f, c, d, a, b, k2, s2, i + 2) \
    SK_MD5_STEP(f, b, c, d, a, k3, s3, i + 3)

/* The sixteen times four steps, on `word`, `a`, `b`, `c` and `d`: numbers here, vectors of them in md5_lanes.h. */
#define SK_MD5_ROUNDS \
    SK_MD5_FOUR(SK_MD5_F, 0, 1, 2, 3, 7, 12, 17, 22, 0) \
    SK_MD5_FOUR(SK_MD5_F, 4, 5, 6, 7, 7, 12, 17, 22, 4) \
    SK_MD5_FOUR(SK_MD5_F, 8, 9, 10, 11, 7, 12, 17, 22, 8) \
    SK_MD5_FOUR(SK_MD5_F, 12, 13, 14, 15, 7, 12, 17, 22, 12) \
    SK_MD5_FOUR(SK_MD5_G, 1, 6, 11, 0, 5, 9, 14, 20, 16) \
    SK_MD5_FOUR(SK_MD5_G, 5, 10, 15, 4, 5, 9, 14, 20, 20) \
    SK_MD5_FOUR(SK_MD5_G, 9, 14, 3, 8, 5, 9, 14, 20, 24) \
    SK_MD5_FOUR(SK_MD5_G, 13, 2, 7, 12, 5, 9, 14, 20, 28) \
    SK_MD5_FOUR(SK_MD5_H, 5, 8, 11, 14, 4, 11, 16, 23, 32) \
    SK_MD5_FOUR(SK_MD5_H, 1, 4, 7, 10, 4, 11, 16, 23, 36) \
    SK_MD5_FOUR(SK_MD5_H, 13, 0, 3, 6, 4, 11, 16, 23, 40) \
    SK_MD5_FOUR(SK_MD5_H, 9, 12, 15, 2, 4, 11, 16, 23, 44) \
    SK_MD5_FOUR(SK_MD5_I, 0, 7, 14, 5, 6, 10, 15, 21, 48) \
    SK_MD5_FOUR(SK_MD5_I, 12, 3, 10, 1, 6, 10, 15, 21, 52) \
    SK_MD5_FOUR(SK_MD5_I, 8, 15, 6, 13, 6, 10, 15, 21, 56) \
    SK_MD5_FOUR(SK_MD5_I, 4, 11, 2, 9, 6, 10, 15, 21, 60)

static inline void sk_md5_block(uint32_t state[4], const uint8_t *at) {
    uint32_t word[16], a = state[0], b = state[1], c = state[2], d = state[3];
    memcpy(word, at, 64);
    SK_MD5_ROUNDS
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

/* The 16 bytes as MD5 prints them; read as one big-endian number they are the hash key. */
static inline void sk_md5(const uint8_t *at, size_t size, uint8_t out[16]) {
    uint32_t state[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    uint64_t bits = (uint64_t)size << 3;
    uint8_t last[128];
    size_t rest, padded;
    for (rest = size; rest >= 64; rest -= 64, at += 64) sk_md5_block(state, at);
    padded = rest < 56 ? 64 : 128;
    memset(last, 0, padded);
    if (rest) memcpy(last, at, rest);
    last[rest] = 0x80;
    memcpy(last + padded - 8, &bits, 8);
    sk_md5_block(state, last);
    if (padded == 128) sk_md5_block(state, last + 64);
    memcpy(out, state, 16);
}

#endif
