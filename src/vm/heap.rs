//! The allocator's habits, glibc's mallopt(3) and malloc_trim(3).

#![allow(unsafe_code)]

/// Has all threads of this process share one heap. One for each saves a wait where
/// threads allocate all the time; ours hardly do, and each costs system calls and
/// pages.
pub fn share() {
    // SAFETY: takes numbers only, and may be called any time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives what is free back to the host.
pub fn give_back() {
    // SAFETY: touches free memory only, and may be called any time.
    unsafe { libc::malloc_trim(0) };
}
