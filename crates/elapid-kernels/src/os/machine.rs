//! What the system says about the machine and this process. Only Linux says it, in `/proc`.

use std::fs;

pub use super::available::{Available, available};

/// The CPU's name.
pub fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?;
    Some(name.trim().to_owned())
}

/// All memory, in bytes.
pub fn memory() -> Option<u64> {
    bytes("/proc/meminfo", "MemTotal:")
}

/// Memory that can be had without swapping, in bytes.
pub fn free_memory() -> Option<u64> {
    bytes("/proc/meminfo", "MemAvailable:")
}

/// Peak resident memory of this process in bytes, since it began or [`forget_peak`].
pub fn peak_memory() -> Option<u64> {
    bytes("/proc/self/status", "VmHWM:")
}

/// Sets the peak of resident memory to the current value.
pub fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").ok();
}

/// The machine's name in a network.
pub fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    name.map(|name| name.trim().to_owned())
}

/// A name of this start of the system that no other machine has.
pub fn boot() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// A field of a file that counts in kB.
fn bytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn linux_says_it_all() {
        let (all, free, peak) = (memory().unwrap(), free_memory().unwrap(), peak_memory().unwrap());
        assert!(free <= all && (100_000..all).contains(&peak), "{free} of {all}, peak {peak}");
        assert!(!host_name().unwrap().is_empty() && boot().unwrap().len() > 16);
    }
}
