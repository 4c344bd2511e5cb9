//! Settings of allocated memory: reuse of what was freed, large pages.

/// Makes the C library's allocator keep freed blocks for the next request instead of returning them to the system.
///
/// A training step allocates the same tensors repeatedly. Without this, every page is cleared and mapped again each time,
/// which takes an eighth of a small model's step. Memory stays at its peak until the process ends. Does nothing on other
/// systems.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The largest values that glibc accepts: blocks up to 32 MiB come from the heap, and the heap is not trimmed.
        // SAFETY: `mallopt` changes two settings of the allocator under its own lock; no memory is touched.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Moves values that are read repeatedly, such as a model's weights, to pages of 2 MiB if the system has them.
///
/// Streaming half a gigabyte of weights per token through pages of 4 KiB constantly misses the TLB. Does nothing for smaller
/// blocks, on other systems, and before Linux 6.1.
pub fn use_huge_pages<T>(numbers: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        // Of Linux; `libc` has it for glibc alone.
        const MADV_COLLAPSE: libc::c_int = 25;
        let start = numbers.as_ptr().addr();
        let (from, to) = (start.next_multiple_of(HUGE), (start + size_of_val(numbers)) / HUGE * HUGE);
        if from < to {
            // SAFETY: the range is whole pages inside one live allocation, and collapsing pages keeps what they hold. A
            // failure changes nothing.
            unsafe { libc::madvise(numbers.as_ptr().with_addr(from).cast_mut().cast(), to - from, MADV_COLLAPSE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = numbers;
}
