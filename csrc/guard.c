/* SPDX-License-Identifier: MIT
 *
 * The tables of entries. An entry (R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT, or R_X86_64_64: a pointer in a table of
 * functions) is changed when its symbol has a name of ours and its value is the function of libc that ours calls. So
 * another function of that name, which an object defines or gets from elsewhere, stays; so does what an object's own code
 * has put there; to change twice is to change once; and to undo needs no list.
 *
 * An entry that was not bound yet points into its own object, at the code that would bind it. It is changed if the
 * symbol's version is one of libc's.
 *
 * Others load and bind objects meanwhile. An object is in the loader's list before it is relocated. An entry that was not
 * relocated yet has neither value, so it is left alone, and each change is a compare and swap. Pages that are read-only
 * after relocation (RELRO) are made writable only if /proc/self/maps says that they are read-only: then the loader is done
 * with them. Whoever loads the object sweeps after that. dl_iterate_phdr keeps objects from being unmapped.
 *
 * dlopen() and dlsym() look at who calls them. dlsym() of a name that is none of ours, or from RTLD_NEXT, is a jump to the
 * real one, whose caller then is ours. dlopen() has to come back to us, so its search along the caller's RUNPATH is made
 * here.
 */
#include "guard.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BUCKETS = 4096, PAGE = 4096 };
enum { DLOPEN, DLMOPEN, DLSYM, DLVSYM };

/* For the jumps in assembly. */
#define HIDDEN __attribute__((used, visibility("hidden")))
HIDDEN void *us_guard_real_dlsym, *us_guard_real_dlvsym;
HIDDEN int us_guard_has(const char *name);
HIDDEN void *us_guard_dlsym(void *handle, const char *name);
HIDDEN void *us_guard_dlvsym(void *handle, const char *name, const char *version);

static us_guard_t *const all[] = {us_guard_core,  us_guard_rw,    us_guard_vec,
                                  us_guard_calls, us_guard_stdio, us_guard_signal};
enum { LISTS = sizeof all / sizeof *all };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* outside it: dl_iterate_phdr's */
static us_guard_t *buckets[BUCKETS];                     /* open addressing; written once, before `open` */
static bool ready;
static _Atomic bool is_open;
static _Atomic uint64_t changed;

/* ---- names --------------------------------------------------------------------------------------------- */

static uint32_t hash(const char *name) {
    uint32_t h = 5381;
    for (; *name; name++)
        h = h * 33 + (unsigned char)*name;
    return h;
}

static us_guard_t *find(const char *name) {
    for (uint32_t i = hash(name);; i++) {
        us_guard_t *g = buckets[i % BUCKETS];
        if (!g || strcmp(g->name, name) == 0)
            return g;
    }
}

const char *us_guard_name(uint32_t index) {
    for (int i = 0; i < LISTS; i++)
        for (us_guard_t *g = all[i]; g->name; g++)
            if (index-- == 0)
                return g->name;
    return NULL;
}

/* Is that address in the main program? There a function whose address is taken has a stub, which dlsym() gives. */
static int note_main(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    uint64_t *range = arg;
    range[0] = UINT64_MAX, range[1] = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD)
            continue;
        uint64_t at = info->dlpi_addr + p->p_vaddr;
        range[0] = at < range[0] ? at : range[0];
        range[1] = at + p->p_memsz > range[1] ? at + p->p_memsz : range[1];
    }
    return 1; /* the first is the main program */
}

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }

static int make_ready(void) {
    if (ready)
        return 0;
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    if (!libc)
        return -ENOSYS; /* another libc */
    uint64_t program[2];
    dl_iterate_phdr(note_main, program);
    for (int i = 0; i < LISTS; i++) {
        for (us_guard_t *g = all[i]; g->name; g++) {
            g->libc = dlsym(libc, g->name);
            void *first = dlsym(RTLD_DEFAULT, g->name);
            bool stub = (uint64_t)(uintptr_t)first >= program[0] && (uint64_t)(uintptr_t)first < program[1];
            g->other = first && !stub && first != g->ours ? first : g->libc;
            uint32_t at = hash(g->name);
            while (buckets[at % BUCKETS])
                at++;
            buckets[at % BUCKETS] = g;
        }
    }
    dlclose(libc);
    us_guard_real_dlsym = us_guard_core[DLSYM].other;
    us_guard_real_dlvsym = us_guard_core[DLVSYM].other;
    int err = pthread_atfork(before_fork, after_fork, after_fork);
    ready = err == 0;
    return -err;
}

/* ---- objects ------------------------------------------------------------------------------------------- */

typedef struct object {
    uint64_t base, lo, hi;       /* where it lies */
    uint64_t relro_lo, relro_hi; /* whole pages */
    const ElfW(Sym) * symbols;
    const char *strings;
    uint64_t strings_len;
    const ElfW(Rela) * tables[2];
    uint64_t counts[2];
    const ElfW(Versym) * versions;
    const ElfW(Verneed) * needs;
    uint64_t n_needs;
} object_t;

typedef struct sweep {
    bool undo;
    int changed;
    struct range {
        uint64_t lo, hi;
    } *read_only; /* of /proc/self/maps, in order; read when first wanted */
    size_t n, room;
    bool looked;
} sweep_t;

static uint64_t at_base(const object_t *o, uint64_t p) {
    return p < o->base ? p + o->base
                       : p; /* most are relocated by the loader, those of the vdso and some prelinked ones not */
}

static bool read_object(struct dl_phdr_info *info, object_t *o) {
    const ElfW(Dyn) *dynamic = NULL;
    *o = (object_t){.base = info->dlpi_addr, .lo = UINT64_MAX};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uint64_t at = o->base + p->p_vaddr;
        if (p->p_type == PT_LOAD) {
            o->lo = at < o->lo ? at : o->lo;
            o->hi = at + p->p_memsz > o->hi ? at + p->p_memsz : o->hi;
        } else if (p->p_type == PT_DYNAMIC) {
            dynamic = (const void *)(uintptr_t)at;
        } else if (p->p_type == PT_GNU_RELRO) { /* as the loader protects it */
            o->relro_lo = at / PAGE * PAGE;
            o->relro_hi = (at + p->p_memsz) / PAGE * PAGE;
        }
    }
    if (!dynamic)
        return false;
    uint64_t rela_bytes = 0, plt_bytes = 0, plt_kind = DT_RELA;
    for (const ElfW(Dyn) *d = dynamic; d->d_tag != DT_NULL; d++) {
        uint64_t value = d->d_un.d_val, p = at_base(o, d->d_un.d_ptr);
        switch (d->d_tag) {
        case DT_SYMTAB: o->symbols = (const void *)(uintptr_t)p; break;
        case DT_STRTAB: o->strings = (const void *)(uintptr_t)p; break;
        case DT_STRSZ: o->strings_len = value; break;
        case DT_RELA: o->tables[0] = (const void *)(uintptr_t)p; break;
        case DT_RELASZ: rela_bytes = value; break;
        case DT_JMPREL: o->tables[1] = (const void *)(uintptr_t)p; break;
        case DT_PLTRELSZ: plt_bytes = value; break;
        case DT_PLTREL: plt_kind = value; break;
        case DT_VERSYM: o->versions = (const void *)(uintptr_t)p; break;
        case DT_VERNEED: o->needs = (const void *)(uintptr_t)p; break;
        case DT_VERNEEDNUM: o->n_needs = value; break;
        default: break;
        }
    }
    o->counts[0] = o->tables[0] ? rela_bytes / sizeof(ElfW(Rela)) : 0;
    o->counts[1] = o->tables[1] && plt_kind == DT_RELA ? plt_bytes / sizeof(ElfW(Rela)) : 0;
    return o->symbols && o->strings;
}

/* Does the symbol's version come from libc, or from what was split from it in older ones? */
static bool wants_libc(const object_t *o, uint32_t symbol) {
    static const char *const files[] = {"libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"};
    if (!o->versions || !o->needs)
        return false;
    uint16_t version = o->versions[symbol] & 0x7fff;
    const char *p = (const char *)o->needs;
    for (uint64_t i = 0; i < o->n_needs; i++) {
        const ElfW(Verneed) *need = (const void *)p;
        const char *q = p + need->vn_aux;
        for (int j = 0; j < need->vn_cnt; j++) {
            const ElfW(Vernaux) *aux = (const void *)q;
            if ((aux->vna_other & 0x7fff) == version) {
                for (size_t k = 0; k < sizeof files / sizeof *files; k++)
                    if (strcmp(o->strings + need->vn_file, files[k]) == 0)
                        return true;
                return false;
            }
            q += aux->vna_next;
        }
        p += need->vn_next;
    }
    return false;
}

/* ---- read-only pages ----------------------------------------------------------------------------------- */

/* No stream: a sweep holds the loader's lock, and a thread that holds a stream's may wait for that. */
static void read_maps(sweep_t *s) {
    s->looked = true;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    char line[64], chunk[PAGE];
    size_t used = 0;
    for (ssize_t got; (got = read(fd, chunk, sizeof chunk)) > 0 || (got < 0 && errno == EINTR);)
        for (ssize_t i = 0; i < got; i++) {
            if (chunk[i] != '\n') {
                if (used < sizeof line - 1)
                    line[used++] = chunk[i];
                continue;
            }
            line[used] = 0;
            used = 0;
            char *end;
            uint64_t lo = strtoull(line, &end, 16), hi = *end == '-' ? strtoull(end + 1, &end, 16) : 0;
            if (hi > lo && strncmp(end, " r--p", 5) == 0 && s->n < s->room)
                s->read_only[s->n++] = (struct range){lo, hi};
        }
    close(fd);
}

static bool is_read_only(sweep_t *s, uint64_t lo, uint64_t hi) {
    if (!s->looked)
        read_maps(s);
    for (size_t i = 0; i < s->n; i++)
        if (s->read_only[i].lo <= lo && lo < s->read_only[i].hi)
            lo = s->read_only[i].hi; /* they are in order, and one may be split */
    return lo >= hi;
}

/* ---- the sweep ----------------------------------------------------------------------------------------- */

/* What the entry should be, or NULL: it stays. */
static void *wanted(const object_t *o, const sweep_t *s, const ElfW(Rela) * r, uint64_t value) {
    uint32_t type = ELF64_R_TYPE(r->r_info), index = ELF64_R_SYM(r->r_info);
    if ((type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64) || index == 0 ||
        r->r_addend != 0)
        return NULL;
    const ElfW(Sym) *symbol = &o->symbols[index];
    if (symbol->st_name >= o->strings_len)
        return NULL;
    us_guard_t *g = find(o->strings + symbol->st_name);
    if (!g || !g->libc)
        return NULL;
    if (s->undo)
        return value == (uint64_t)(uintptr_t)g->ours ? g->other : NULL;
    if (value == (uint64_t)(uintptr_t)g->libc || value == (uint64_t)(uintptr_t)g->other)
        return g->ours;
    bool unbound = type == R_X86_64_JUMP_SLOT && value >= o->lo && value < o->hi && symbol->st_shndx == SHN_UNDEF;
    /* A library that stands before libc has no versions. */
    bool stands_before = g->other != g->libc && (!o->versions || (o->versions[index] & 0x7fff) <= 1);
    return unbound && (stands_before || wants_libc(o, index)) ? g->ours : NULL;
}

static int sweep_object(struct dl_phdr_info *info, size_t size, void *arg) {
    (void)size;
    sweep_t *s = arg;
    static const char *const theirs[] = {"/libc.so.6", "/libpthread.so.0", "/ld-linux-x86-64.so.2", "/libdl.so.2",
                                         "/librt.so.1"};
    object_t o;
    if (!read_object(info, &o))
        return 0;
    uint64_t self = (uint64_t)(uintptr_t)sweep_object;
    if (self >= o.lo && self < o.hi)
        return 0;
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++) {
        size_t a = strlen(info->dlpi_name), b = strlen(theirs[i]);
        if (a >= b && strcmp(info->dlpi_name + a - b, theirs[i]) == 0)
            return 0;
    }
    bool opened = false, skip = false;
    for (int table = 0; table < 2; table++) {
        for (uint64_t i = 0; i < o.counts[table]; i++) {
            const ElfW(Rela) *r = &o.tables[table][i];
            _Atomic uint64_t *entry = (_Atomic uint64_t *)(uintptr_t)(o.base + r->r_offset);
            uint32_t type = ELF64_R_TYPE(r->r_info);
            if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64)
                continue;
            uint64_t value = atomic_load_explicit(entry, memory_order_relaxed);
            void *to = wanted(&o, s, r, value);
            if (!to)
                continue;
            uint64_t at = (uint64_t)(uintptr_t)entry;
            if (at >= o.relro_lo && at < o.relro_hi && !opened) {
                if (skip)
                    continue;
                skip = !is_read_only(s, o.relro_lo, o.relro_hi) ||
                       mprotect((void *)(uintptr_t)o.relro_lo, o.relro_hi - o.relro_lo, PROT_READ | PROT_WRITE) < 0;
                if (skip)
                    continue;
                opened = true;
            }
            if (atomic_compare_exchange_strong(entry, &value, (uint64_t)(uintptr_t)to))
                s->changed++;
        }
    }
    if (opened)
        mprotect((void *)(uintptr_t)o.relro_lo, o.relro_hi - o.relro_lo, PROT_READ);
    return 0;
}

static int sweep(bool undo) {
    enum { ROOM = 1 << 16 };
    sweep_t s = {.undo = undo, .room = ROOM};
    void *p = mmap(NULL, ROOM * sizeof *s.read_only, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    s.read_only = p;
    dl_iterate_phdr(sweep_object, &s);
    munmap(p, ROOM * sizeof *s.read_only);
    return s.changed;
}

int us_guard_sweep(void) {
    int n = 0;
    pthread_mutex_lock(&lock);
    if (atomic_load(&is_open)) {
        n = sweep(false);
        if (n > 0)
            atomic_fetch_add(&changed, (uint64_t)n);
    }
    pthread_mutex_unlock(&lock);
    return n;
}

int us_guard_open(void) {
    pthread_mutex_lock(&lock);
    int err = make_ready();
    if (err == 0)
        atomic_store(&is_open, true);
    pthread_mutex_unlock(&lock);
    if (err != 0)
        return err;
    int n = us_guard_sweep();
    return n < 0 ? n : 0;
}

void us_guard_close(void) {
    pthread_mutex_lock(&lock);
    if (atomic_exchange(&is_open, false)) {
        sweep(true);
        atomic_store(&changed, 0);
    }
    pthread_mutex_unlock(&lock);
}

uint64_t us_guard_changed(void) { return atomic_load(&changed); }

/* ---- dlopen and dlsym ---------------------------------------------------------------------------------- */

/* Where the caller's RUNPATH (or RPATH) has the file; false: nowhere, or there is none to look in. */
static bool along_runpath(const char *file, void *caller, char *path, size_t room) {
    Dl_info who;
    struct link_map *map = NULL;
    if (!dladdr1(caller, &who, (void **)&map, RTLD_DL_LINKMAP) || !map || !map->l_ld)
        return false;
    bool has = false;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++)
        has = has || d->d_tag == DT_RUNPATH || d->d_tag == DT_RPATH;
    if (!has)
        return false;
    Dl_serinfo head, *list;
    if (dlinfo(map, RTLD_DI_SERINFOSIZE, &head) != 0 || !(list = malloc(head.dls_size)))
        return false;
    bool found = false;
    *list = head;
    if (dlinfo(map, RTLD_DI_SERINFOSIZE, list) == 0 && dlinfo(map, RTLD_DI_SERINFO, list) == 0)
        for (unsigned i = 0; i < list->dls_cnt && !found; i++)
            found = snprintf(path, room, "%s/%s", list->dls_serpath[i].dls_name, file) < (int)room &&
                    access(path, R_OK) == 0;
    free(list);
    return found;
}

static void *guarded_dlopen(const char *file, int flags) {
    void *(*real)(const char *, int) = (void *(*)(const char *, int))us_guard_core[DLOPEN].other;
    char path[PATH_MAX];
    void *handle = NULL;
    /* What is loaded already is found by its name alone. */
    if (file && *file && !strchr(file, '/') && along_runpath(file, __builtin_return_address(0), path, sizeof path) &&
        !(handle = real(file, flags | RTLD_NOLOAD)))
        handle = real(path, flags);
    if (!handle)
        handle = real(file, flags);
    if (handle)
        us_guard_sweep();
    return handle;
}

static void *guarded_dlmopen(Lmid_t space, const char *file, int flags) {
    void *handle = ((void *(*)(Lmid_t, const char *, int))us_guard_core[DLMOPEN].other)(space, file, flags);
    if (handle)
        us_guard_sweep();
    return handle;
}

/* Non-zero: the name is one of ours. */
HIDDEN int us_guard_has(const char *name) { return name && find(name) != NULL; }

static void *instead(const char *name, void *found) {
    us_guard_t *g = find(name);
    return found && g->libc && (found == g->libc || found == g->other) && atomic_load(&is_open) ? g->ours : found;
}

HIDDEN void *us_guard_dlsym(void *handle, const char *name) {
    return instead(name, ((void *(*)(void *, const char *))us_guard_real_dlsym)(handle, name));
}

HIDDEN void *us_guard_dlvsym(void *handle, const char *name, const char *version) {
    return instead(name, ((void *(*)(void *, const char *, const char *))us_guard_real_dlvsym)(handle, name, version));
}

/* What keeps the caller: a jump, with the arguments as they came. RTLD_NEXT is asked by who stands before libc, and who
 * got ours would call itself. */
#define KEEP_CALLER(name)                                                                            \
    __attribute__((naked, used)) static void guarded_##name(void) {                                  \
        __asm__("cmpq $-1, %rdi\n\tje 1f\n\t"                                                        \
                "pushq %rdi\n\tpushq %rsi\n\tpushq %rdx\n\tmovq %rsi, %rdi\n\tcall us_guard_has\n\t" \
                "popq %rdx\n\tpopq %rsi\n\tpopq %rdi\n\ttestl %eax, %eax\n\tjne 2f\n"                \
                "1:\tjmp *us_guard_real_" #name "(%rip)\n2:\tjmp us_guard_" #name);                  \
    }
KEEP_CALLER(dlsym)
KEEP_CALLER(dlvsym)

us_guard_t us_guard_core[] = {
    [DLOPEN] = {.name = "dlopen", .ours = guarded_dlopen},
    [DLMOPEN] = {.name = "dlmopen", .ours = guarded_dlmopen},
    [DLSYM] = {.name = "dlsym", .ours = guarded_dlsym},
    [DLVSYM] = {.name = "dlvsym", .ours = guarded_dlvsym},
    {.name = NULL},
};
