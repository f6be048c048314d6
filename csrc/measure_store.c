/* SPDX-License-Identifier: MIT
 *
 * What the benchmark of the second tier needs to be in C: objects as the pool holds them, packed as write-out
 * packs them; the way from the pool to a file by itself, packed, and with a decompression in between; and
 * spans of a file read one at a time.
 */
#include "types.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "codec.h"
#include "pool.h"
#include "store.h"
#include "sys.h"

/* The blocks of a region, compressed, one after the other; and in a pool, while they are taken out of it. */
struct us_objects {
    uint64_t n, payload;
    uint32_t block;
    int codec;
    uint8_t *bytes;  /* of all of them */
    uint64_t *at;    /* n + 1: where each begins */
    us_pool_t *pool; /* NULL until us_objects_out */
    uint64_t *off;   /* n: in the pool; 0: not there */
    int fd;
    void *base;
    uint64_t virt;
};

static uint32_t length_of(const us_objects_t *o, uint64_t i) { return (uint32_t)(o->at[i + 1] - o->at[i]); }
static uint8_t codec_of(const us_objects_t *o, uint64_t i) {
    return (uint8_t)(length_of(o, i) == o->block ? US_CODEC_NONE : o->codec);
}
static const void *payload_of(const us_objects_t *o, uint64_t i) {
    return o->off != NULL && o->off[i] != 0 ? us_pool_at(o->pool, o->off[i]) : o->bytes + o->at[i];
}

void us_objects_free(us_objects_t *o) {
    if (o == NULL)
        return;
    us_pool_destroy(o->pool);
    if (o->base != NULL)
        munmap(o->base, o->virt);
    if (o->fd >= 0)
        close(o->fd);
    free(o->off);
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
        *o = (us_objects_t){.n = n,
                            .block = block,
                            .codec = codec,
                            .bytes = malloc(n * block),
                            .at = malloc((n + 1) * sizeof *o->at),
                            .fd = -1};
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

/* Packs objects from *next on into a new segment's buffer, until it is full or none is left. */
static int pack_segment(const us_objects_t *o, uint64_t *next, us_log_t *log, us_packer_t *k, int64_t id, void *buf,
                        uint32_t large, int64_t *off) {
    if (id < 0)
        return (int)id;
    us_pack_begin(k, log, (uint32_t)id, buf);
    for (; *next < o->n; ++*next) {
        const uint64_t i = *next;
        const uint32_t length = length_of(o, i);
        off[i] = us_pack_add(k, (uint32_t)i, 1, codec_of(o, i), length, o->block, payload_of(o, i), length >= large);
        if (off[i] == -ENOSPC)
            break;
        if (off[i] < 0)
            return (int)off[i];
    }
    return 0;
}

int us_objects_pack(const us_objects_t *o, us_image_t *image) {
    us_log_t *log = NULL;
    int64_t *off = malloc(o->n * sizeof *off);
    if (off == NULL)
        return -ENOMEM;
    int err = us_log_new(&log, image->room / image->segment * image->segment, image->segment, 1);
    image->segments = image->written = 0;
    for (uint64_t next = 0; next < o->n && err == 0; image->segments++) {
        us_packer_t k;
        const int64_t id = us_log_open(log);
        uint8_t *buf = id < 0 ? NULL : (uint8_t *)image->to + id * image->segment;
        err = pack_segment(o, &next, log, &k, id, buf, image->large, off);
        if (err == 0)
            image->written += us_pack_end(&k);
    }
    if (err == 0) {
        for (uint64_t i = 0; i < o->n; i++)
            us_obj_span((uint64_t)off[i], length_of(o, i), &image->span_off[i], &image->span_len[i]);
        image->payload = o->payload;
        image->padding = us_log_padding(log);
    }
    us_log_free(log);
    free(off);
    return err;
}

/* ---- reads -------------------------------------------------------------------------------------------- */

/* As a loop does: asleep until the eventfd is rung, if nothing is done yet. */
static void sleep_until_done(us_io_t *io, int ring_fd) {
    struct pollfd f = {.fd = ring_fd, .events = POLLIN};
    uint64_t rung;
    if (!us_io_ready(io) && poll(&f, 1, -1) == 1 && read(ring_fd, &rung, sizeof rung) < 0) {
        /* nothing: it was rung for what is seen already */
    }
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
                while (us_io_done(io) == NULL)
                    sleep_until_done(io, ring_fd);
                err = q.res;
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

/* ---- out of the pool ---------------------------------------------------------------------------------- */

/* All objects are in the pool afterwards. */
static int fill_pool(us_objects_t *o) {
    if (o->pool == NULL) {
        const uint64_t budget = o->payload + o->payload / 4 + (16u << 20); /* size classes are not exact */
        o->virt = us_pool_virtual(budget);
        o->off = calloc(o->n, sizeof *o->off);
        o->fd = memfd_create("uswap-measure", MFD_CLOEXEC);
        if (o->off == NULL || o->fd < 0 || ftruncate(o->fd, (off_t)o->virt) != 0)
            return o->off == NULL ? -ENOMEM : -errno;
        void *base = mmap(NULL, o->virt, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, o->fd, 0);
        if (base == MAP_FAILED)
            return -errno;
        o->base = base;
        const int err = us_pool_init(&o->pool, o->fd, 0, base, o->virt, budget);
        if (err < 0)
            return err;
    }
    for (uint64_t i = 0; i < o->n; i++) {
        if (o->off[i] != 0)
            continue; /* left from a run that failed */
        const int err = us_pool_alloc(o->pool, length_of(o, i), (uint32_t)i, 0, &o->off[i]);
        if (err < 0) {
            o->off[i] = 0;
            return err;
        }
        memcpy(us_pool_at(o->pool, o->off[i]), o->bytes + o->at[i], length_of(o, i));
    }
    return 0;
}

/* Not measured: in a pool that is in use most of the room is taken again by what comes in, while in one that is
 * only emptied all of it goes back to the kernel, page by page. */
static void empty_pool(us_objects_t *o) {
    for (uint64_t i = 0; i < o->n; i++) {
        us_pool_free(o->pool, o->off[i], length_of(o, i));
        o->off[i] = 0;
    }
}

/* A write in flight: the objects [first, end). */
typedef struct us_out_write {
    us_io_req_t req;
    us_packer_t pack;
    uint8_t *buf;
    uint64_t first, end;
    bool busy;
} us_out_write_t;

typedef struct us_out_state {
    us_objects_t *o;
    us_out_t *out;
    us_io_t *io;
    us_log_t *log;
    us_codec_ctx_t *ctx;
    int64_t *off;  /* of each object in the file */
    uint64_t next; /* object */
    int writes, err;
    us_out_write_t write[US_WRITES];
    us_io_req_t read;
    void *read_buf;
    uint64_t read_since;
    bool reading;
} us_out_state_t;

static void read_next(us_out_state_t *s) {
    us_out_t *out = s->out;
    if (out->reads == out->reads_max || s->next == s->o->n)
        return;
    s->read = (us_io_req_t){
        .op = US_IO_READ, .buf = s->read_buf, .len = out->read_len[out->reads], .off = out->read_off[out->reads]};
    s->read_since = us_now_ns();
    s->reading = us_io_submit(s->io, &s->read) == 0;
    us_io_flush(s->io);
}

/* What the loop does when a write is done, but for the room in the pool: see empty_pool. */
static void commit(us_out_state_t *s, us_out_write_t *w) {
    w->busy = false;
    s->writes--;
    if (w->req.res != 0) {
        s->err = w->req.res;
        return;
    }
    if (s->out->how != US_OUT_PACKED)
        return;
    us_log_written(s->log, w->pack.id);
    for (uint64_t i = w->first; i < w->end; i++)
        us_log_live(s->log, (uint64_t)s->off[i], length_of(s->o, i));
    us_log_settle(s->log, w->pack.id);
}

static void pump(us_out_state_t *s) {
    for (us_io_req_t *q; (q = us_io_done(s->io)) != NULL;) {
        if (q->op == US_IO_WRITE) {
            commit(s, &s->write[q->user[0]]);
            continue;
        }
        s->reading = false;
        if (q->res != 0)
            s->err = q->res;
        else
            s->out->read_ns[s->out->reads++] = us_now_ns() - s->read_since;
        read_next(s);
    }
}

/* The next segment, packed as it is; or as many blocks as it holds, decompressed. Returns the bytes to write. */
static int64_t next_write(us_out_state_t *s, us_out_write_t *w) {
    const uint32_t segment = s->out->segment;
    if (s->out->how == US_OUT_PACKED) {
        const int64_t id = us_log_open(s->log);
        const int err = pack_segment(s->o, &s->next, s->log, &w->pack, id, w->buf, s->out->large, s->off);
        w->req.off = w->pack.base;
        return err < 0 ? err : (int64_t)us_pack_end(&w->pack);
    }
    const uint32_t block = s->o->block;
    uint32_t used = 0;
    w->req.off = s->next * block;
    for (; s->next < s->o->n && segment - used >= block; s->next++, used += block) {
        const uint64_t i = s->next;
        const int err =
            us_decompress(s->ctx, codec_of(s->o, i), payload_of(s->o, i), length_of(s->o, i), w->buf + used, block);
        if (err < 0)
            return err;
    }
    return used;
}

static void write_next(us_out_state_t *s, us_out_write_t *w) {
    const uint64_t index = (uint64_t)(w - s->write);
    w->req = (us_io_req_t){.op = US_IO_WRITE, .buf = w->buf, .user = {index}};
    w->first = s->next;
    const int64_t bytes = next_write(s, w);
    w->end = s->next;
    if (bytes <= 0) {
        s->err = bytes < 0 ? (int)bytes : -EINVAL;
        return;
    }
    w->req.len = (uint32_t)bytes;
    s->err = us_io_submit(s->io, &w->req);
    if (s->err != 0)
        return;
    us_io_flush(s->io);
    w->busy = true;
    s->writes++;
    s->out->written += (uint64_t)bytes;
}

/* As the loop does it: one thread packs, as many writes in flight as there are, and sees completions between two
 * segments, or sleeps when all buffers are on their way. */
static void run_out(us_out_state_t *s, int ring_fd) {
    read_next(s);
    while (s->err == 0 && (s->next < s->o->n || s->writes > 0)) {
        us_out_write_t *w = NULL;
        for (int k = 0; k < US_WRITES && w == NULL; k++)
            w = s->write[k].busy ? NULL : &s->write[k];
        if (w != NULL && s->next < s->o->n)
            write_next(s, w);
        else
            sleep_until_done(s->io, ring_fd);
        pump(s);
    }
}

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* the kernel's threads that help with I/O included */
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* As write-out has them: there from the start, and touched. One thread measures at a time. */
static uint8_t *write_buffers(uint64_t len) {
    static uint8_t *bufs;
    static uint64_t room;
    if (len > room) {
        bufs = us_sys_reserve_huge(len);
        room = bufs == NULL ? 0 : len;
        if (bufs != NULL)
            memset(bufs, 1, len);
    }
    return bufs;
}

int us_objects_out(us_objects_t *o, us_out_t *out) {
    if ((out->how != US_OUT_PACKED && out->how != US_OUT_UNPACKED) || out->segment < o->block)
        return -EINVAL;
    us_out_state_t s = {.o = o, .out = out};
    uint32_t most = US_PAGE;
    for (uint64_t i = 0; i < out->reads_max; i++)
        most = (uint32_t)us_max(most, out->read_len[i]);
    int err = fill_pool(o);
    const int ring_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (err == 0 && ring_fd < 0)
        err = -errno;
    if (err == 0)
        err = us_log_new(&s.log, out->room / out->segment * out->segment, out->segment, 1);
    if (err == 0)
        err = us_codec_ctx_new(&s.ctx, o->block);
    s.off = malloc(o->n * sizeof *s.off);
    s.read_buf = aligned_alloc(US_PAGE, us_align_up(most, US_PAGE));
    const uint64_t each = us_align_up(out->segment, US_PAGE);
    uint8_t *bufs = write_buffers(US_WRITES * each);
    for (int k = 0; k < US_WRITES && bufs != NULL; k++)
        s.write[k].buf = bufs + (uint64_t)k * each;
    if (s.off == NULL || s.read_buf == NULL || bufs == NULL)
        err = -ENOMEM;
    if (err == 0)
        err = us_io_open(&s.io, out->fd, out->engine, 0, 1, US_WRITES, ring_fd, NULL);
    if (err == 0) {
        memset(s.read_buf, 0, most);
        out->written = out->reads = 0;
        const uint64_t t = us_now_ns(), cpu = cpu_ns();
        run_out(&s, ring_fd);
        out->ns = us_now_ns() - t;
        out->cpu_ns = cpu_ns() - cpu;
        err = s.err;
    }
    if (err == 0)
        empty_pool(o);
    us_io_close(s.io); /* waits for what is in flight */
    free(s.read_buf);
    free(s.off);
    us_codec_ctx_free(s.ctx);
    us_log_free(s.log);
    if (ring_fd >= 0)
        close(ring_fd);
    return err;
}

int us_measure_writes(int fd, const void *from, uint64_t len, uint32_t each, uint64_t *ns, uint64_t *cpu) {
    const uint64_t t = us_now_ns(), before = cpu_ns();
    for (uint64_t at = 0; at < len;) {
        const ssize_t n = pwrite(fd, (const uint8_t *)from + at, us_min(each, len - at), (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        at += (uint64_t)n;
    }
    *ns = us_now_ns() - t;
    *cpu = cpu_ns() - before;
    return 0;
}
