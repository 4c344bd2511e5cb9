//! How much memory the system has left.

/// Memory that this process can still allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    /// In bytes.
    pub bytes: u64,
    /// What sets the limit.
    pub limit: &'static str,
}

/// How much memory this process can still allocate: the minimum of the system's free memory including swap, what its control
/// groups leave, and its limits (`ulimit`). `None` if the system does not report it.
pub fn available() -> Option<Available> {
    #[cfg(target_os = "linux")]
    {
        linux::available()
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::path::{Path, PathBuf};

    use rustix::process::{Resource, getrlimit};

    use super::Available;

    pub(super) fn available() -> Option<Available> {
        let memory = fs::read_to_string("/proc/meminfo").ok();
        let memory = memory.as_deref().map_or((None, 0), of_system);
        let of_system = memory.0.map(|bytes| Available { bytes: bytes + memory.1, limit: "free memory" });
        let group = fs::read_to_string("/proc/self/cgroup").ok();
        let of_group = group.and_then(|group| of_groups(&group, Path::new("/sys/fs/cgroup"), memory.1));
        let of_group = of_group.map(|bytes| Available { bytes, limit: "the memory limit of the control group" });
        [of_system, of_group, of_address_space()].into_iter().flatten().min_by_key(|available| available.bytes)
    }

    /// Bytes available without swapping, and free swap space.
    fn of_system(meminfo: &str) -> (Option<u64>, u64) {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        (field("MemAvailable"), field("SwapFree").unwrap_or(0))
    }

    fn of_address_space() -> Option<Available> {
        let limit = getrlimit(Resource::As).current?;
        // The first field: pages of address space.
        let pages = fs::read_to_string("/proc/self/statm").ok()?;
        let used = pages.split(' ').next()?.parse::<u64>().ok()?.saturating_mul(rustix::param::page_size() as u64);
        Some(Available { bytes: limit.saturating_sub(used), limit: "the limit on address space, ulimit -v" })
    }

    /// The minimum that the control groups of this process and their parents leave.
    fn of_groups(groups: &str, root: &Path, swap: u64) -> Option<u64> {
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let path = path.trim_start_matches('/');
            match controllers {
                "" => Some((root.join(path), root.to_owned(), true)),
                // Version 1 has a tree for each controller.
                _ if controllers.split(',').any(|name| name == "memory") => {
                    let root = root.join("memory");
                    Some((root.join(path), root, false))
                }
                _ => None,
            }
        };
        let left = |(group, root, unified): (PathBuf, PathBuf, bool)| {
            // A container sees its own group as the root, but under its outside name.
            let around = group.ancestors().filter(|dir| dir.starts_with(&root)).chain([root.as_path()]);
            around.filter_map(|dir| if unified { of_unified(dir, swap) } else { of_first(dir) }).min()
        };
        groups.lines().filter_map(line).filter_map(left).min()
    }

    fn of_unified(dir: &Path, swap: u64) -> Option<u64> {
        let limit = number(&dir.join("memory.max"))?;
        let used =
            number(&dir.join("memory.current"))?.saturating_sub(file_pages(dir, ["inactive_file", "active_file"]));
        let swap = match (number(&dir.join("memory.swap.max")), number(&dir.join("memory.swap.current"))) {
            (Some(limit), Some(used)) => limit.saturating_sub(used).min(swap),
            _ => swap,
        };
        Some(limit.saturating_sub(used).saturating_add(swap))
    }

    fn of_first(dir: &Path) -> Option<u64> {
        let limit = number(&dir.join("memory.limit_in_bytes"))?;
        let pages = file_pages(dir, ["total_inactive_file", "total_active_file"]);
        let used = number(&dir.join("memory.usage_in_bytes"))?.saturating_sub(pages);
        Some(limit.saturating_sub(used))
    }

    /// Bytes of cached files that the system can drop.
    fn file_pages(dir: &Path, names: [&str; 2]) -> u64 {
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let field = |line: &str| line.split_once(' ').filter(|(name, _)| names.contains(name))?.1.parse::<u64>().ok();
        stat.lines().filter_map(field).sum()
    }

    /// The number in a file; none for `max`.
    fn number(file: &Path) -> Option<u64> {
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn meminfo_is_read() {
            let text = "MemTotal:  100 kB\nMemAvailable:     7 kB\nSwapTotal: 5 kB\nSwapFree:          2 kB\n";
            assert_eq!(of_system(text), (Some(7 * 1024), 2 * 1024));
            assert_eq!(of_system("MemAvailable: many"), (None, 0));
        }

        #[test]
        fn control_groups_limit_from_any_level() {
            let root = tempfile::tempdir().unwrap();
            let put = |path: &str, text: &str| {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            let left = |groups: &str, swap| of_groups(groups, root.path(), swap);
            assert_eq!(left("0::/a/b\n", 0), None);
            put("a/memory.max", "1000\n");
            put("a/memory.current", "700\n");
            put("a/memory.stat", "anon 400\ninactive_file 100\nactive_file 50\n");
            put("a/b/memory.max", "max\n");
            put("a/b/memory.current", "5\n");
            assert_eq!(left("0::/a/b\n", 0), Some(1000 - (700 - 150)));
            assert_eq!(left("0::/a/b\n", 30), Some(480), "swap space counts");
            put("a/memory.swap.max", "20\n");
            put("a/memory.swap.current", "5\n");
            assert_eq!(left("0::/a/b\n", 30), Some(465), "as far as the group may use it");
            put("a/b/memory.max", "35\n");
            assert_eq!(left("0::/a/b\n", 0), Some(30));
            put("memory/c/memory.limit_in_bytes", "90");
            put("memory/c/memory.usage_in_bytes", "20");
            assert_eq!(left("4:cpu:/x\n3:memory:/c\n0::/\n", 0), Some(70));
        }

        #[test]
        fn this_process_has_some_memory_left() {
            assert!(available().unwrap().bytes > 1 << 20);
        }
    }
}
