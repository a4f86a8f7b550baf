/* CRC-32C (Castagnoli), as in RFC 3720: reflected polynomial 0x82F63B78, initial and final complement.
 *
 * Ours and not a package's, because the flusher thread, recovery and framing need it without the GIL and the
 * kept packages only offer a Python call; tests compare it with google-crc32c. See docs/decisions/0003.
 * crc32c(crc, data, size) continues from `crc`; start with 0. */
#ifndef STREAMKIT_CRC32C_H
#define STREAMKIT_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t sk_crc_table[8][256];

__attribute__((constructor)) static void sk_crc_fill(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
        sk_crc_table[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            sk_crc_table[k][n] = sk_crc_table[0][sk_crc_table[k - 1][n] & 255] ^ (sk_crc_table[k - 1][n] >> 8);
}

static uint32_t sk_crc_soft(uint32_t crc, const uint8_t *at, size_t size) {
    while (size >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= sk_crc_table[7 - k][(word >> (8 * k)) & 255];
        at += 8;
        size -= 8;
    }
    while (size--) crc = sk_crc_table[0][(crc ^ *at++) & 255] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
#include <immintrin.h>
/* One stream waits three cycles for each instruction, so large inputs run as three neighbouring streams of
 * `lane` bytes. Joining them needs "crc followed by n zero bytes", crc * x^(8n) mod P: a carry-less product
 * with x^(8n - 33), which the crc instruction then reduces (it multiplies by x^32; reflection adds x). */
enum { SK_CRC_LANE_LONG = 1024, SK_CRC_LANE_SHORT = 128 };
static uint32_t sk_crc_after[2][2]; /* [long, short][one lane, two lanes] */
static int sk_crc_hard_found;

__attribute__((constructor)) static void sk_crc_prepare(void) {
    for (int k = 0; k < 4; k++) {
        uint32_t power = 0x80000000u; /* x^0, reflected */
        for (int n = 8 * (k & 2 ? SK_CRC_LANE_SHORT : SK_CRC_LANE_LONG) * (1 + (k & 1)) - 33; n > 0; n--)
            power = power & 1 ? (power >> 1) ^ 0x82F63B78u : power >> 1;
        sk_crc_after[k >> 1][k & 1] = power;
    }
    sk_crc_hard_found = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

__attribute__((target("sse4.2,pclmul"))) static inline uint32_t sk_crc_follow(uint32_t crc, uint32_t power) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)power), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t sk_crc_hard(uint32_t crc32, const uint8_t *at,
                                                                     size_t size) {
    uint64_t crc = crc32, second, third, word;
    for (int k = 0; k < 2; k++) {
        const size_t lane = k ? SK_CRC_LANE_SHORT : SK_CRC_LANE_LONG;
        for (; size >= 3 * lane; size -= 3 * lane, at += 2 * lane) {
            const uint8_t *end = at + lane;
            for (second = third = 0; at < end; at += 8) {
                memcpy(&word, at, 8);
                crc = _mm_crc32_u64(crc, word);
                memcpy(&word, at + lane, 8);
                second = _mm_crc32_u64(second, word);
                memcpy(&word, at + 2 * lane, 8);
                third = _mm_crc32_u64(third, word);
            }
            crc = sk_crc_follow((uint32_t)crc, sk_crc_after[k][1]) ^
                  sk_crc_follow((uint32_t)second, sk_crc_after[k][0]) ^ third;
        }
    }
    while (size >= 8) {
        memcpy(&word, at, 8);
        crc = _mm_crc32_u64(crc, word);
        at += 8;
        size -= 8;
    }
    while (size--) crc = _mm_crc32_u8((uint32_t)crc, *at++);
    return (uint32_t)crc;
}
static inline int sk_crc_has_hard(void) { return sk_crc_hard_found; }
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
static uint32_t sk_crc_hard(uint32_t crc, const uint8_t *at, size_t size) {
    uint64_t word;
    while (size >= 8) {
        memcpy(&word, at, 8);
        crc = __crc32cd(crc, word);
        at += 8;
        size -= 8;
    }
    while (size--) crc = __crc32cb(crc, *at++);
    return crc;
}
static inline int sk_crc_has_hard(void) { return 1; }
#else
#define sk_crc_hard sk_crc_soft
static inline int sk_crc_has_hard(void) { return 0; }
#endif

static inline uint32_t sk_crc32c(uint32_t crc, const void *data, size_t size) {
    const uint8_t *at = (const uint8_t *)data;
    crc = ~crc;
    return ~(sk_crc_has_hard() ? sk_crc_hard(crc, at, size) : sk_crc_soft(crc, at, size));
}

#endif
