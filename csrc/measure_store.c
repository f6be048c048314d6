/* SPDX-License-Identifier: MIT
 *
 * What the benchmark of the second tier needs to be in C: objects as the pool holds them, packed as write-out
 * packs them, and spans of a file read one at a time.
 */
#include "types.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec.h"
#include "store.h"

/* The blocks of a region, compressed, one after the other. */
struct us_objects {
    uint64_t n, payload;
    uint32_t block;
    int codec;
    uint8_t *bytes; /* of all of them */
    uint64_t *at;   /* n + 1: where each begins */
};

static uint32_t length_of(const us_objects_t *o, uint64_t i) { return (uint32_t)(o->at[i + 1] - o->at[i]); }
static uint8_t codec_of(const us_objects_t *o, uint64_t i) {
    return (uint8_t)(length_of(o, i) == o->block ? US_CODEC_NONE : o->codec);
}

void us_objects_free(us_objects_t *o) {
    if (o == NULL)
        return;
    free(o->bytes);
    free(o->at);
    free(o);
}

int us_objects_new(us_objects_t **out, int codec, int level, uint32_t block, const void *src, uint64_t len) {
    const uint64_t n = block == 0 ? 0 : len / block;
    if (n == 0 || n >= US_NONE || block > 1u << US_BLOCK_MAX_SHIFT || !us_codec_ready(codec))
        return -EINVAL;
    us_codec_ctx_t *ctx = NULL;
    int err = us_codec_ctx_new(&ctx, block);
    if (err != 0)
        return err;
    us_objects_t *o = calloc(1, sizeof *o);
    if (o != NULL)
        *o = (us_objects_t){.n = n, .block = block, .codec = codec, .bytes = malloc(n * block), .at = malloc((n + 1) * 8)};
    err = -ENOMEM;
    if (o == NULL || o->bytes == NULL || o->at == NULL)
        goto fail;
    o->at[0] = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint8_t *from = (const uint8_t *)src + i * block;
        int packed = us_compress(ctx, codec, level, from, block, o->bytes + o->at[i], block - block / 16);
        if (packed < 0) {
            err = packed;
            goto fail;
        }
        if (packed == 0) { /* kept as it is */
            memcpy(o->bytes + o->at[i], from, block);
            packed = (int)block;
        }
        o->at[i + 1] = o->at[i] + (uint64_t)packed;
    }
    o->payload = o->at[n];
    us_codec_ctx_free(ctx);
    *out = o;
    return 0;
fail:
    us_codec_ctx_free(ctx);
    us_objects_free(o);
    return err;
}

uint64_t us_objects_payload(const us_objects_t *o) { return o->payload; }

int us_objects_pack(const us_objects_t *o, us_image_t *image) {
    const uint64_t room = image->room / image->segment;
    us_log_t *log;
    int err = us_log_new(&log, room * image->segment, image->segment, 1);
    if (err < 0)
        return err;
    us_packer_t k = {0};
    bool open = false;
    image->segments = image->written = 0;
    for (uint64_t i = 0; i < o->n; i++) {
        const uint32_t length = length_of(o, i);
        int64_t off = -ENOSPC;
        while (off == -ENOSPC) {
            if (!open) {
                const int64_t id = us_log_open(log);
                if (id < 0) {
                    err = (int)id;
                    goto done;
                }
                us_pack_begin(&k, log, (uint32_t)id, (uint8_t *)image->to + (uint64_t)id * image->segment);
                open = true;
            }
            off = us_pack_add(&k, (uint32_t)i, 1, codec_of(o, i), length, o->block, o->bytes + o->at[i],
                              length >= image->large);
            if (off == -ENOSPC) {
                image->written += us_pack_end(&k);
                image->segments++;
                open = false;
            }
        }
        if (off < 0) {
            err = (int)off;
            goto done;
        }
        us_obj_span((uint64_t)off, length, &image->span_off[i], &image->span_len[i]);
    }
    image->written += us_pack_end(&k);
    image->segments++;
    image->payload = o->payload;
    image->padding = us_log_padding(log);
    err = 0;
done:
    us_log_free(log);
    return err;
}

/* ---- reads -------------------------------------------------------------------------------------------- */

/* Waits for a completion as a loop does: asleep until the eventfd is rung. */
static us_io_req_t *wait_done(us_io_t *io, int ring_fd) {
    us_io_req_t *q;
    while ((q = us_io_done(io)) == NULL) {
        struct pollfd f = {.fd = ring_fd, .events = POLLIN};
        uint64_t rung;
        if (poll(&f, 1, -1) == 1 && read(ring_fd, &rung, sizeof rung) < 0) {
            /* nothing: it was rung for what is seen already */
        }
    }
    return q;
}

static int pread_all(int fd, void *buf, uint32_t len, uint64_t off) {
    for (uint32_t done = 0; done < len;) {
        const ssize_t n = pread(fd, (uint8_t *)buf + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (uint32_t)n;
    }
    return 0;
}

int us_measure_reads(int fd, int engine, const uint64_t *off, const uint32_t *len, uint64_t n, uint64_t *ns) {
    uint32_t most = US_PAGE;
    for (uint64_t i = 0; i < n; i++)
        most = (uint32_t)us_max(most, len[i]);
    us_io_t *io = NULL;
    int err = -ENOMEM, ring_fd = -1;
    void *buf = aligned_alloc(US_PAGE, us_align_up(most, US_PAGE));
    if (buf == NULL)
        return err;
    memset(buf, 0, most); /* the page faults are not to be measured */
    if (engine != US_IO_PLAIN) {
        ring_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        err = ring_fd < 0 ? -errno : us_io_open(&io, fd, engine, 0, 1, 1, ring_fd, NULL);
        if (err < 0)
            goto done;
    }
    err = 0;
    for (uint64_t i = 0; i < n && err == 0; i++) {
        const uint64_t t = us_now_ns();
        if (io == NULL) {
            err = pread_all(fd, buf, len[i], off[i]);
        } else {
            us_io_req_t q = {.op = US_IO_READ, .buf = buf, .len = len[i], .off = off[i]};
            err = us_io_submit(io, &q);
            if (err == 0) {
                us_io_flush(io);
                err = wait_done(io, ring_fd)->res;
            }
        }
        ns[i] = us_now_ns() - t;
    }
done:
    us_io_close(io);
    if (ring_fd >= 0)
        close(ring_fd);
    free(buf);
    return err;
}
