//! What this process asks of the system: memory that is freed and asked for again, pages, limits.

/// Tells the C library's allocator to keep freed blocks for the next request instead of handing them back to the system.
///
/// A training step allocates the same tensors again and again; without this every one of its pages is cleared and mapped
/// anew each time: an eighth of a step's time for a small model. Memory stays at its peak until the process ends. Does
/// nothing on other systems.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The largest values that glibc takes: blocks up to 32 MiB come from the heap, and the heap is not trimmed.
        // SAFETY: `mallopt` changes two numbers of the allocator under its own lock; no memory is touched.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Moves numbers that are read again and again, a model's weights, to pages of 2 MiB where the system has them.
///
/// Streaming half a gigabyte of weights for every token through pages of 4 KiB misses the translation cache all the time.
/// Blocks below that size, other systems and kernels before Linux 6.1 are left as they are.
pub fn use_huge_pages(numbers: &[f32]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = numbers.as_ptr().addr();
        let (from, to) = (start.next_multiple_of(HUGE), (start + size_of_val(numbers)) / HUGE * HUGE);
        if from < to {
            // SAFETY: the range is whole pages inside one live allocation, and collapsing pages keeps what they hold. A
            // failure changes nothing.
            unsafe {
                libc::madvise(numbers.as_ptr().with_addr(from).cast_mut().cast(), to - from, libc::MADV_COLLAPSE)
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = numbers;
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) an error, as a full disk is one, where the system
/// would end the process by SIGXFSZ. Does nothing where there is no such signal.
pub fn return_error_for_large_files() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal installs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
