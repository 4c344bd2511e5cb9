//! How much memory there is, and what a piece of work takes of it, known before anything is allocated.

use std::fmt;

use crate::config::ModelConfig;
use crate::{DType, Device, Error, LanguageModel, Result};

/// What a piece of work takes, part by part.
///
/// Parts are computed from shapes and are what is surely needed at the same time, not the most that ever is: what is
/// refused could not have run.
#[derive(Debug, Clone, Default)]
pub struct Needs(Vec<Part>);

#[derive(Debug, Clone)]
struct Part {
    what: &'static str,
    bytes: u128,
    /// Settings that make it smaller.
    lower: String,
}

/// Work that does not fit, and what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes needed.
    pub needed: u128,
    /// Bytes that are available, if the system says; else the needed ones are more than can be addressed.
    pub available: Option<Available>,
    /// The needed bytes by part, and what to do.
    pub detail: String,
}

/// Bytes that this process can still take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    /// How many.
    pub bytes: u64,
    /// What sets the limit.
    pub limit: &'static str,
}

impl Needs {
    /// The same with another part of `count` elements of `size` bytes, which gets smaller with the settings `lower`.
    #[must_use]
    pub fn and(mut self, what: &'static str, count: u128, size: u32, lower: &str) -> Self {
        self.0.push(Part { what, bytes: count.saturating_mul(size.into()), lower: lower.to_owned() });
        self
    }

    /// The same with the parts of `other`.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// All bytes.
    pub fn bytes(&self) -> u128 {
        self.0.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// Checks that it fits into what the system has left.
    ///
    /// # Errors
    /// If it does not: with both sizes, the parts, and the settings that lower the largest one.
    pub fn check(&self) -> Result<()> {
        self.check_against(available())
    }

    /// Checks that it fits into the memory of a device: of a GPU, all that it has.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_on(&self, device: Device) -> Result<()> {
        match device {
            Device::Cpu => self.check(),
            Device::Cuda(gpu) => {
                self.check_against(Some(Available { bytes: gpu.total_memory() as u64, limit: "the memory of the GPU" }))
            }
        }
    }

    fn check_against(&self, available: Option<Available>) -> Result<()> {
        let needed = self.bytes();
        let most = available.map_or(u128::MAX, |available| available.bytes.into()).min(isize::MAX as u128);
        if needed <= most {
            return Ok(());
        }
        let mut parts: Vec<&Part> = self.0.iter().filter(|part| part.bytes > 0).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let list: Vec<String> = parts.iter().map(|part| format!("{} {}", part.what, size(part.bytes))).collect();
        // Those of every part that is too large by itself, else those of the largest.
        let alone = parts.iter().filter(|part| part.bytes > most).count().max(1);
        let mut lower: Vec<&str> = Vec::new();
        for part in parts.iter().take(alone) {
            if !lower.contains(&part.lower.as_str()) {
                lower.push(&part.lower);
            }
        }
        let detail = format!("{}; lower {}", list.join(", "), lower.join(", and "));
        Err(Error::Memory(Box::new(Shortage { needed, available, detail })))
    }
}

impl Needs {
    /// What the parameters of a model take in f32.
    pub fn of_parameters(config: &ModelConfig) -> Self {
        Self::default().and("parameters", parameters(config), 4, SIZES)
    }
}

/// What sets the number of parameters.
const SIZES: &str = "the model's sizes (vocabulary, width, layers, state)";

fn parameters(config: &ModelConfig) -> u128 {
    LanguageModel::parameter_count(config).map_or(u128::MAX, u128::from)
}

impl LanguageModel {
    /// What a pass without gradients takes beside the parameters: `b` rows of `l` positions; `lower` are the settings of
    /// these two.
    pub fn needs_of_pass(&self, b: usize, l: usize, lower: &str) -> Needs {
        let (b, size) = (b as u128, self.dtype().bytes() as u32);
        let positions = b.saturating_mul(l as u128);
        Needs::default().and("activations", positions.saturating_mul(self.widest().kept.into()), size, lower).and(
            "states",
            b.saturating_mul(self.cost(0).state.into()),
            4,
            lower,
        )
    }

    /// What training takes beside the parameters: gradients, the optimiser's moments, and what is kept of `b` rows of `l`
    /// positions, or of the inputs of blocks alone if these are recomputed. `lower` are the settings of the sizes.
    pub fn needs_of_training(&self, b: usize, l: usize, dtype: DType, recompute: bool, lower: &str) -> Needs {
        let positions = (b as u128).saturating_mul(l as u128);
        let config = self.config();
        let kept = match recompute {
            true => 2 * config.d_model() as u64 * config.n_layer() as u64 + self.widest().kept,
            false => self.cost(0).kept,
        };
        Needs::default()
            .and("gradients", parameters(config), 4, SIZES)
            .and("the optimiser's moments", parameters(config).saturating_mul(2), 4, SIZES)
            .and("activations", positions.saturating_mul(kept.into()), dtype.bytes() as u32, lower)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this takes at least {} of memory, ", size(self.needed))?;
        match self.available {
            Some(Available { bytes, limit }) => write!(f, "and {} are available ({limit})", size(bytes.into()))?,
            None => write!(f, "more than can be addressed")?,
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Shortage {}

/// `1.50 GB`.
fn size(bytes: u128) -> String {
    const UNITS: [(u128, &str); 6] = [
        (1_000_000_000_000_000_000, "EB"),
        (1_000_000_000_000_000, "PB"),
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// What this process can still take: the least of what the system has free, swap space included, what its control groups
/// leave, and its limits (`ulimit`). `None` where the system does not say.
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

    /// Bytes that the system can give without swapping, and free swap space.
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

    /// The least that a control group of this process, or one around it, leaves.
    fn of_groups(groups: &str, root: &Path, swap: u64) -> Option<u64> {
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let path = path.trim_start_matches('/');
            match controllers {
                "" => Some((root.join(path), root.to_owned(), true)),
                // The first version has a tree for each controller.
                _ if controllers.split(',').any(|name| name == "memory") => {
                    let root = root.join("memory");
                    Some((root.join(path), root, false))
                }
                _ => None,
            }
        };
        let left = |(group, root, unified): (PathBuf, PathBuf, bool)| {
            // A container sees its own group as the root, under the name that it has outside.
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

    /// Bytes of files that the system drops when it needs the memory.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_both_sizes() {
        let needs = Needs::default().and("parameters", 1 << 20, 4, "model.d_model").and(
            "activations",
            1 << 40,
            4,
            "train.batch or data.length",
        );
        let there = Available { bytes: 8_000_000_000, limit: "free memory" };
        let text = needs.check_against(Some(there)).unwrap_err().to_string();
        assert_eq!(
            text,
            "this takes at least 4.40 TB of memory, and 8.00 GB are available (free memory): activations 4.40 TB, \
             parameters 4.19 MB; lower train.batch or data.length"
        );
        assert!(needs.check_against(None).is_ok(), "a system that does not say");
        let both = needs.check_against(Some(Available { bytes: 9, limit: "" })).unwrap_err().to_string();
        assert!(both.ends_with("lower train.batch or data.length, and model.d_model"), "{both}");
        let beyond = Needs::default().and("x", u128::MAX, 4, "it").check_against(None).unwrap_err().to_string();
        assert!(beyond.contains("more than can be addressed"), "{beyond}");
    }

    #[test]
    fn what_fits_exactly_fits() {
        let needs = Needs::default().and("x", 2, 4, "it").with(Needs::default().and("y", 2, 1, "it"));
        let of = |bytes| needs.check_against(Some(Available { bytes, limit: "" }));
        assert!(needs.bytes() == 10 && of(10).is_ok() && of(9).is_err());
    }
}
