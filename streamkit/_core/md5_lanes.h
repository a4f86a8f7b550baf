/* MD5 of eight short keys at once: MD5 waits for itself at every step, so eight lanes take little longer than one key.
 * The steps are those of md5.h, on vectors; gcc and clang find instructions for them on every machine, and make two
 * interleaved halves of them where a vector register holds four numbers. */
#ifndef STREAMKIT_MD5_LANES_H
#define STREAMKIT_MD5_LANES_H

#include "md5.h"

enum { SK_MD5_LANES = 8, SK_MD5_SHORT_MAX = 55 }; /* bytes that fit one block with its padding */

typedef uint32_t sk_md5_vector __attribute__((vector_size(4 * SK_MD5_LANES)));

/* Like sk_md5 for each of eight keys of at most SK_MD5_SHORT_MAX bytes. */
static void sk_md5_lanes(const uint8_t *const *at, const size_t *size, uint8_t *const *out) {
    uint32_t block[SK_MD5_LANES][16];
    sk_md5_vector word[16];
    sk_md5_vector a, b, c, d;
    memset(block, 0, sizeof block);
    for (int lane = 0; lane < SK_MD5_LANES; lane++) {
        uint8_t *text = (uint8_t *)block[lane];
        if (size[lane]) memcpy(text, at[lane], size[lane]);
        text[size[lane]] = 0x80;
        block[lane][14] = (uint32_t)size[lane] << 3;
    }
    for (int k = 0; k < 16; k++)
        for (int lane = 0; lane < SK_MD5_LANES; lane++) word[k][lane] = block[lane][k];
    a = (sk_md5_vector){0} + 0x67452301u;
    b = (sk_md5_vector){0} + 0xefcdab89u;
    c = (sk_md5_vector){0} + 0x98badcfeu;
    d = (sk_md5_vector){0} + 0x10325476u;
    SK_MD5_ROUNDS
    a += 0x67452301u;
    b += 0xefcdab89u;
    c += 0x98badcfeu;
    d += 0x10325476u;
    for (int lane = 0; lane < SK_MD5_LANES; lane++) {
        uint32_t state[4] = {a[lane], b[lane], c[lane], d[lane]};
        memcpy(out[lane], state, 16);
    }
}

#endif
