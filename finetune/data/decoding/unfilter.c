/* Undoes the filters of a PNG's rows (PNG specification, third edition, section 9) for samples of 8 bits.

   `raw` holds `rows` times one byte that names the row's filter and `width` filtered bytes; `step` is how many bytes lie
   between a byte and its left neighbour (bytes per pixel). Returns 0, or 1 for a filter that does not exist.

   Every byte waits for its left neighbour. Two Paeth rows in a row are therefore undone side by side, the lower one a
   pixel behind, so that one waits while the other works. */
#include <stdlib.h>

typedef unsigned char byte;

static inline int paeth(int left, int up, int corner) {
    int to_left = abs(up - corner), to_up = abs(left - corner), to_corner = abs(left + up - 2 * corner);
    int found = to_up <= to_corner ? up : corner;
    return to_left <= to_up && to_left <= to_corner ? left : found;
}

static void one_row(int filter, long long width, long long step, const byte *in, const byte *above, byte *out) {
    for (long long i = 0; i < step; i++) { /* nothing stands to the left: 0 */
        int up = above ? above[i] : 0;
        out[i] = in[i] + (filter == 2 || filter == 4 ? up : filter == 3 ? up / 2 : 0);
    }
    if (filter == 0)
        for (long long i = step; i < width; i++) out[i] = in[i];
    else if (filter == 1)
        for (long long i = step; i < width; i++) out[i] = in[i] + out[i - step];
    else if (filter == 2)
        for (long long i = step; i < width; i++) out[i] = in[i] + (above ? above[i] : 0);
    else if (filter == 3)
        for (long long i = step; i < width; i++) out[i] = in[i] + (out[i - step] + (above ? above[i] : 0)) / 2;
    else
        for (long long i = step; i < width; i++)
            out[i] = in[i] + (above ? paeth(out[i - step], above[i], above[i - step]) : out[i - step]);
}

/* Two Paeth rows of one byte a pixel; `above` is there. */
static void two_rows(long long width, const byte *in0, const byte *in1, const byte *above, byte *out0, byte *out1) {
    int left0 = (byte)(in0[0] + above[0]), corner0 = above[0];
    out0[0] = left0;
    int left1 = (byte)(in1[0] + left0), corner1 = left0;
    out1[0] = left1;
    if (width == 1) return;
    int up1; /* what the upper row has just given is what the lower one meets next */
    left0 = (byte)(in0[1] + paeth(left0, above[1], corner0));
    corner0 = above[1];
    out0[1] = up1 = left0;
    for (long long i = 2; i < width; i++) {
        int up0 = above[i];
        int next0 = (byte)(in0[i] + paeth(left0, up0, corner0));
        int next1 = (byte)(in1[i - 1] + paeth(left1, up1, corner1));
        corner1 = up1;
        up1 = next0;
        left1 = next1;
        left0 = next0;
        corner0 = up0;
        out0[i] = next0;
        out1[i - 1] = next1;
    }
    out1[width - 1] = in1[width - 1] + paeth(left1, up1, corner1);
}

int unfilter(long long rows, long long width, long long step, const byte *raw, byte *out) {
    long long apart = width + 1;
    for (long long row = 0; row < rows; row++) {
        const byte *in = raw + row * apart, *above = row ? out + (row - 1) * width : NULL;
        if (in[0] > 4) return 1;
        if (step == 1 && row && row + 1 < rows && in[0] == 4 && in[apart] == 4) {
            two_rows(width, in + 1, in + apart + 1, above, out + row * width, out + (row + 1) * width);
            row++;
        } else
            one_row(in[0], width, step, in + 1, above, out + row * width);
    }
    return 0;
}
