//! Compiles every kernel for every architecture, without a GPU.
//!
//! The assembler's output for a unit that compiles is cached in `target/cuda-check`, so only changed units are compiled
//! again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use elapid_kernels::cuda::compile;
use elapid_kernels::cuda::library::{self, Needed};
use elapid_kernels::cuda::{self, Unit};
use elapid_kernels::units;

/// Kernels that may spill registers: source, entry, maximum bytes up to Hopper, and from Blackwell on.
const MAY_SPILL: &[(&str, &str, u32, u32)] = &[
    // 512 threads leave 128 registers, or 64 for two blocks; rows of several gates are summed at once.
    ("cell", "forward", 80, 160),
    ("cell", "backward", 24, 80),
    // 1024 threads leave 64 registers; two words that are read once are kept in memory.
    ("sampling", "sample", 8, 8),
    // 168 registers allow three blocks per multiprocessor.
    ("selective_scan", "backward", 432, 4540),
    ("selective_scan_tensor", "backward", 164, 64),
    // 80 registers allow three blocks of 256 threads per multiprocessor.
    ("selective_scan_tensor", "forward", 0, 8),
    // More than 128 states per channel.
    ("selective_scan", "forward", 416, 208),
    // Kernels of chunked scans, run once per channel and chunk, and of the bilinear rule.
    ("selective_scan", "forward_ends", 16, 32),
    ("selective_scan", "backward_ends", 0, 8),
    // 255 registers; a few words that are read once per tile.
    ("attention_forward", "forward", 0, 8),
    ("attention_queries", "backward_queries", 16, 8),
    ("attention_keys", "backward_keys", 24, 0),
    // 168 registers allow three blocks per multiprocessor.
    ("attention_hopper_keys", "backward_keys", 76, 32),
    // Where it is not for, on sm_80 and from Blackwell on.
    ("attention_hopper_forward", "forward", 124, 8),
    ("causal_conv1d", "forward", 40, 192),
    ("cross_entropy", "rows", 12, 8),
    ("elementwise", "select_rows", 8, 0),
    // States in registers: 16 columns a lane with the widest values; a few words that are read once per position or chunk.
    ("linear_attention_plain", "backward_keys", 80, 80),
    ("linear_attention_plain", "forward", 16, 64),
    // 255 registers allow two blocks per multiprocessor.
    ("linear_attention_backward", "queries", 176, 176),
    ("linear_attention_backward", "keys", 268, 136),
    ("linear_attention_backward", "parameters", 16, 16),
    // 168 registers allow three blocks per multiprocessor.
    ("linear_attention_keyed_backward", "gradients", 368, 420),
    ("linear_attention_keyed_backward", "values", 44, 44),
    ("linear_attention_keyed_backward", "parameters", 16, 16),
    ("linear_attention_keyed_forward", "outputs", 20, 20),
    ("mamba1_step", "step", 52, 24),
    // A block of the threads that stay has 96 registers each; with 2560 columns ten pieces of the row lie in them.
    ("mamba2_one_row", "one_row", 16, 16),
    ("pointwise", "glu_forward", 0, 8),
    // Rows of 2560 and more values on sm_80.
    ("mamba1_one_row", "one_row", 80, 0),
];

/// The package to install if no NVRTC is found.
const WHEEL: &str = "nvidia-cuda-nvrtc==13.0.88";
/// Its folder in the wheel, with `lib` inside, as for `CUDA_PATH`.
const INSIDE: &str = "nvidia/cu13";

/// An architecture: `sm_90` is (9, 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arch(u32, u32);

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let number = name.strip_prefix("sm_").and_then(|digits| digits.parse().ok()).filter(|&number| number >= 10);
        let number: u32 = number.ok_or_else(|| format!("`{name}` is no architecture: wanted sm_90 or the like"))?;
        Ok(Self(number / 10, number % 10))
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}{}", self.0, self.1)
    }
}

/// Compiles all kernels for one architecture into the folder where elapid looks for compiled kernels (`ELAPID_CACHE`). A
/// machine with this folder and the same version of NVRTC compiles none.
pub(crate) fn fill(arch: Arch) -> Result<()> {
    if let Err(missing) = library::load(Needed::Nvrtc) {
        return with_wheel(&missing);
    }
    let folder = compile::folder().context("no folder for compiled kernels: set ELAPID_CACHE")?;
    let units = units::all();
    let failed: Vec<String> = on_all_cores(&units, |unit| {
        let image = compile::cached(unit.source, &unit.defines, (arch.0, arch.1));
        image.err().map(|error| format!("{} for {arch}: {error}", name(unit)))
    })
    .into_iter()
    .flatten()
    .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    println!("{} units for {arch} in {}", units.len(), folder.display());
    Ok(())
}

/// Compiles all kernels; prints the resources of each if `verbose`.
pub(crate) fn run(archs: &[Arch], verbose: bool) -> Result<()> {
    if let Err(missing) = library::load(Needed::Nvrtc) {
        return with_wheel(&missing);
    }
    let started = Instant::now();
    let (units, version) = (units::all(), compile::version());
    let jobs: Vec<(&Unit, Arch)> = units.iter().flat_map(|unit| archs.iter().map(move |&arch| (unit, arch))).collect();
    let kept = Kept::new(&beside_the_build("cuda-check")?, version)?;
    let mut kernels = Vec::new();
    let (mut faults, mut warnings) = (Vec::new(), BTreeMap::<_, usize>::new());
    let said = on_all_cores(&jobs, |&(unit, arch)| kept.or(unit, arch, || compile(unit, arch)));
    for ((unit, arch), compiled) in jobs.iter().zip(said) {
        match compiled {
            Ok(log) => {
                kernels.extend(check(unit, *arch, &log, &mut faults));
                warnings_of(&log).for_each(|line| *warnings.entry(line.to_owned()).or_default() += 1);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if verbose {
        print!("{}", table(&kernels));
    }
    for (line, count) in warnings {
        eprintln!("{line} (in {count} units)");
    }
    let (major, minor) = version;
    let archs = archs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    println!(
        "{} units, {} kernels for {archs} by NVRTC {major}.{minor} in {:.0} s: {}",
        units.len(),
        kernels.len(),
        started.elapsed().as_secs_f64(),
        extremes(&kernels)
    );
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// The results of `work` for each job, in order; uses all cores.
fn on_all_cores<T: Sync, R: Send>(jobs: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(i) else { return done };
            done.push((i, work(job)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let mut done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

fn compile(unit: &Unit, arch: Arch) -> Result<String, String> {
    let of = || format!("{} for {arch}", name(unit));
    let image = compile::compile(unit.source, &unit.defines, (arch.0, arch.1));
    let image = image.map_err(|error| format!("{}: {error}", of()))?;
    match unit.entries.iter().find(|entry| !has_entry(&image.code, entry)) {
        Some(missing) => Err(format!("{}: no kernel `{missing}` in the code", of())),
        None => Ok(image.log),
    }
}

/// The cache of the assembler's output.
struct Kept {
    folder: PathBuf,
    /// The text compiled with every unit, and the options.
    common: String,
}

impl Kept {
    fn new(folder: &Path, version: (i32, i32)) -> Result<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/elapid-kernels/src/cuda");
        let mut common = format!("{version:?}");
        for file in ["common.cuh", "compile.rs"] {
            let path = sources.join(file);
            common += &std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder: folder.to_owned(), common })
    }

    /// The output for a unit, from the cache or by `compile`.
    fn or(&self, unit: &Unit, arch: Arch, compile: impl FnOnce() -> Result<String, String>) -> Result<String, String> {
        let mut hasher = DefaultHasher::new();
        (&self.common, unit.source.text, unit.entries, name(unit), arch.to_string()).hash(&mut hasher);
        let path = self.folder.join(format!("{:016x}.log", hasher.finish()));
        if let Ok(log) = std::fs::read_to_string(&path) {
            return Ok(log);
        }
        let log = compile()?;
        // Under another name first, so that a file is complete or missing. One that cannot be written is not an error.
        let partial = path.with_extension("partial");
        std::fs::write(&partial, &log).and_then(|()| std::fs::rename(&partial, &path)).ok();
        Ok(log)
    }
}

/// The resources of a kernel; unknown for PTX, for which no registers were allocated yet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    unit: String,
    entry: String,
    arch: Arch,
    usage: Usage,
}

/// The assembler's figures for a kernel, in bytes except the registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    stack: u32,
    spilled: u32,
    shared: u32,
}

/// The kernels of a unit, in the order of its entries; problems go to `faults`.
fn check(unit: &Unit, arch: Arch, log: &str, faults: &mut Vec<String>) -> Vec<Kernel> {
    let (said, name) = (usages(log), name(unit));
    let mut kernels = Vec::new();
    for &entry in unit.entries {
        let usage = said.iter().find(|(of, _)| of == entry).map(|(_, usage)| *usage).unwrap_or_default();
        let most = most_spilled(unit.source.name, entry, arch);
        if usage.spilled > most {
            let Usage { spilled, registers, .. } = usage;
            faults.push(format!(
                "{name} for {arch}: `{entry}` spills {spilled} bytes with {registers} registers, {most} are allowed"
            ));
        }
        kernels.push(Kernel { unit: name.clone(), entry: entry.to_owned(), arch, usage });
    }
    kernels
}

/// `causal_conv1d.cu(175): warning #39-D: division by zero`.
fn warnings_of(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains(": warning ") || line.contains("ptxas warning"))
}

fn most_spilled(source: &str, entry: &str, arch: Arch) -> u32 {
    let allowed = MAY_SPILL.iter().find(|allowed| (allowed.0, allowed.1) == (source, entry));
    allowed.map_or(0, |&(_, _, hopper, blackwell)| if arch < Arch(10, 0) { hopper } else { blackwell })
}

/// `selective_scan -DT=bf16 -DN=16`.
fn name(unit: &Unit) -> String {
    unit.defines.iter().fold(unit.source.name.to_owned(), |name, define| format!("{name} {define}"))
}

/// Whether machine code has a section, or PTX an entry, of that name.
fn has_entry(code: &[u8], entry: &str) -> bool {
    let within = |wanted: &[u8]| code.windows(wanted.len()).any(|part| part == wanted);
    if code.starts_with(b"\x7fELF") {
        return within(format!("\0.text.{entry}\0").as_bytes());
    }
    within(format!(".entry {entry}(").as_bytes())
}

/// The output of `ptxas -v` for each kernel; functions that a kernel calls count as its own.
fn usages(log: &str) -> Vec<(String, Usage)> {
    let mut found: Vec<(String, Usage)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            found.push((rest.split('\'').next().unwrap_or_default().to_owned(), Usage::default()));
        }
        let Some((_, usage)) = found.last_mut() else { continue };
        if line.contains(" bytes spill stores") {
            usage.stack += before(line, " bytes stack frame");
            usage.spilled += before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
        usage.registers = usage.registers.max(before(line, " registers"));
        usage.shared += before(line, " bytes smem");
    }
    found
}

/// The number before some words; 0 if they are missing.
fn before(line: &str, words: &str) -> u32 {
    let Some((start, _)) = line.split_once(words) else { return 0 };
    start.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// `at most 168 registers (selective_scan … backward), none spills`.
fn extremes(kernels: &[Kernel]) -> String {
    let Some(most) = kernels.iter().max_by_key(|kernel| kernel.usage.registers) else { return "nothing".into() };
    let Kernel { unit, entry, arch, usage } = most;
    let spilling = kernels.iter().filter(|kernel| kernel.usage.spilled > 0).count();
    format!("at most {} registers (`{entry}` of {unit} for {arch}), {spilling} of them spill", usage.registers)
}

/// One line per kernel.
fn table(kernels: &[Kernel]) -> String {
    let heading = ["unit", "kernel", "arch", "registers", "spilled", "stack", "shared"].map(str::to_owned);
    let rows = kernels.iter().map(|Kernel { unit, entry, arch, usage }| {
        let Usage { registers, stack, spilled, shared } = usage;
        let numbers = [registers, spilled, stack, shared].map(ToString::to_string);
        let [registers, spilled, stack, shared] = numbers;
        [unit.clone(), entry.clone(), arch.to_string(), registers, spilled, stack, shared]
    });
    let rows: Vec<[String; 7]> = [heading].into_iter().chain(rows).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let cell = |i: usize, text: &String| match i {
        0..3 => format!("{text:width$}", width = widths[i]),
        _ => format!("{text:>width$}", width = widths[i]),
    };
    let line = |row: &[String; 7]| {
        let cells: Vec<String> = row.iter().enumerate().map(|(i, text)| cell(i, text)).collect();
        format!("{}\n", cells.join("  "))
    };
    rows.iter().map(line).collect()
}

/// The same command in a process that finds NVRTC in a wheel beside the build, installed if it is not there yet.
fn with_wheel(missing: &cuda::Error) -> Result<()> {
    let folder = beside_the_build("nvrtc")?;
    let toolkit = folder.join(INSIDE);
    // If the wheel was already tried, it is not tried again.
    let tried = std::env::var_os("CUDA_PATH").is_some_and(|path| Path::new(&path) == toolkit);
    ensure!(!tried, "NVRTC in {} does not load on this machine: {missing}", toolkit.display());
    if !toolkit.join("lib").is_dir() {
        install(&folder).with_context(|| missing.to_string())?;
    }
    let arguments = std::env::args_os().skip(1);
    let status = Command::new(std::env::current_exe()?).args(arguments).env("CUDA_PATH", toolkit).status()?;
    ensure!(status.success(), "the check with NVRTC of {WHEEL} failed");
    Ok(())
}

/// A folder of `target`, where this program was built.
fn beside_the_build(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let target = this.ancestors().nth(2).with_context(|| format!("{}: no build folder", this.display()))?;
    Ok(target.join(name))
}

fn install(folder: &Path) -> Result<()> {
    const FIX: &str = "with a network and pip it is installed by itself";
    eprintln!("NVRTC is not installed: getting {WHEEL} for this check");
    let options = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"];
    // Under another name first, so that an interrupted installation is not taken for a complete one.
    let partial = folder.with_extension("partial");
    let mut pip = Command::new("python3");
    pip.args(options).arg("--target").arg(&partial).arg(WHEEL);
    let status = pip.env("PIP_ROOT_USER_ACTION", "ignore").status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => bail!("pip could not install {WHEEL}; {FIX}"),
        Err(error) => bail!("no python3 to install {WHEEL} with ({error}); {FIX}"),
    }
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::rename(&partial, folder).with_context(|| format!("cannot write {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'backward' for 'sm_90'
ptxas info    : Function properties for backward
    128 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 128 bytes stack frame, 4096 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'forward' for 'sm_90'
ptxas info    : Function properties for forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
";

    #[test]
    fn the_assembler_is_understood() {
        let [(backward, used), (forward, least)] = &usages(LOG)[..] else { panic!("{:?}", usages(LOG)) };
        assert_eq!((backward.as_str(), forward.as_str()), ("backward", "forward"));
        assert_eq!(*used, Usage { registers: 168, stack: 128, spilled: 32, shared: 4096 });
        assert_eq!(*least, Usage { registers: 40, ..Usage::default() });
        assert!(usages("").is_empty());
    }

    static SOURCE: cuda::Source = cuda::Source { name: "test", text: "" };

    #[test]
    fn faults_are_named() {
        let unit = Unit { source: &SOURCE, entries: &["forward", "backward"], defines: Vec::new() };
        let mut faults = Vec::new();
        let kernels = check(&unit, Arch(9, 0), LOG, &mut faults);
        assert_eq!(kernels.iter().map(|kernel| kernel.entry.as_str()).collect::<Vec<_>>(), ["forward", "backward"]);
        let wanted = "test for sm_90: `backward` spills 32 bytes with 168 registers, 0 are allowed";
        assert_eq!(faults, [wanted]);
        let log = format!("test.cu(3): warning #177-D: never used\nRemark: The warnings can be suppressed\n{LOG}");
        assert_eq!(warnings_of(&log).collect::<Vec<_>>(), ["test.cu(3): warning #177-D: never used"]);
        assert!(table(&kernels).lines().nth(2).unwrap().contains("sm_90        168       32"), "{}", table(&kernels));
        assert!(extremes(&kernels).starts_with("at most 168 registers (`backward` of test for sm_90), 1 "));
    }

    #[test]
    fn entries_are_found() {
        let code = b"\x7fELF\0.text.forward\0.text.step_by_step\0".as_slice();
        assert!(has_entry(code, "forward") && !has_entry(code, "step") && !has_entry(code, "backward"));
        let portable = b".visible .entry forward(\n.param".as_slice();
        assert!(has_entry(portable, "forward") && !has_entry(portable, "for") && !has_entry(portable, "backward"));
    }

    #[test]
    fn what_compiled_is_kept_and_what_did_not_is_not() {
        let folder = std::env::temp_dir().join(format!("elapid-cuda-check-{}", std::process::id()));
        let kept = Kept::new(&folder, (13, 0)).unwrap();
        let unit = Unit { source: &SOURCE, entries: &["forward"], defines: vec![cuda::Define::new("N", 16)] };
        let said = |unit: &Unit, arch, log: Result<&str, &str>| {
            kept.or(unit, arch, || log.map(str::to_owned).map_err(str::to_owned))
        };
        assert_eq!(said(&unit, Arch(9, 0), Err("no")), Err("no".into()));
        assert_eq!(said(&unit, Arch(9, 0), Ok("first")), Ok("first".into()));
        assert_eq!(said(&unit, Arch(9, 0), Ok("second")), Ok("first".into()));
        assert_eq!(said(&unit, Arch(8, 0), Ok("second")), Ok("second".into()));
        let other = Unit { defines: vec![cuda::Define::new("N", 8)], ..unit.clone() };
        assert_eq!(said(&other, Arch(9, 0), Ok("third")), Ok("third".into()));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn architectures_have_names() {
        assert_eq!(["sm_80", "sm_90", "sm_100"].map(str::parse), [Ok(Arch(8, 0)), Ok(Arch(9, 0)), Ok(Arch(10, 0))]);
        assert_eq!(Arch(12, 1).to_string(), "sm_121");
        for wrong in ["90", "sm_", "sm_9", "sm_x"] {
            assert!(wrong.parse::<Arch>().is_err(), "{wrong}");
        }
    }
}
