/* Live-object counters: counted in the debug build (STREAMKIT_DEBUG), nothing at all otherwise. */
#ifndef STREAMKIT_DEBUG_H
#define STREAMKIT_DEBUG_H

#ifdef STREAMKIT_DEBUG
#define SK_DEBUG 1
#define SK_COUNT(counter, delta) __atomic_add_fetch(&(counter), (delta), __ATOMIC_RELAXED)
#else
#define SK_DEBUG 0
#define SK_COUNT(counter, delta) ((void)0)
#endif

#endif
