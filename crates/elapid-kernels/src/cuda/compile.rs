//! Compiling kernels by NVRTC, cached on disk.
//!
//! A compiled kernel's file is named by a hash of all that it depends on: source, options, architecture and NVRTC's
//! version; a hash keyed by that one, at its end, says that it is whole and the code of this kernel. It is written under
//! another name first and then renamed, so that several processes can share the folder.
//! The folder is `ELAPID_CACHE`, or `elapid/kernels` in `XDG_CACHE_HOME` or `~/.cache`; without a folder that can be
//! written, kernels are compiled at every start.

use std::ffi::{CStr, CString};
use std::fmt;
use std::path::PathBuf;

use cudarc::nvrtc::{result as nvrtc, sys};

use super::library::{self, Needed};
use super::{Error, Result};
use crate::DType;

/// The text before every source.
const COMMON: &str = include_str!("common.cuh");

/// The text of one or more kernels.
#[derive(Debug)]
pub struct Source {
    /// Its unique name.
    pub name: &'static str,
    /// CUDA C++, to come after `common.cuh`.
    pub text: &'static str,
}

/// A constant of a specialisation, `-DNAME=value`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Define {
    name: &'static str,
    value: String,
}

impl Define {
    /// A constant with a value.
    pub fn new(name: &'static str, value: impl fmt::Display) -> Self {
        Self { name, value: value.to_string() }
    }

    /// A dtype.
    pub fn dtype(name: &'static str, dtype: DType) -> Self {
        Self::new(name, dtype.c_name())
    }
}

impl fmt::Display for Define {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-D{}={}", self.name, self.value)
    }
}

/// A unit of compilation: a source with the constants of one specialisation.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The text.
    pub source: &'static Source,
    /// Names of the kernels that it must contain.
    pub entries: &'static [&'static str],
    /// The constants.
    pub defines: Vec<Define>,
}

/// A compiled unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Machine code (or PTX, zero-terminated) for the driver to load.
    pub code: Vec<u8>,
    /// The compiler's log: registers, spills, warnings.
    pub log: String,
}

/// Compiles for an architecture such as (9, 0).
///
/// # Errors
/// If NVRTC is missing, or the source does not compile.
pub fn compile(source: &Source, defines: &[Define], capability: (u32, u32)) -> Result<Image> {
    let options = options(capability)?;
    build(source, defines, &options)
}

/// [`compile`] with the cache in [`folder`]; a unit from the cache has no log.
///
/// # Errors
/// As [`compile`].
pub fn cached(source: &Source, defines: &[Define], capability: (u32, u32)) -> Result<Image> {
    let options = options(capability)?;
    let key = key(source, defines, &options);
    let Some(path) = folder().map(|folder| folder.join(format!("{}.cubin", &key.to_hex()[..40]))) else {
        return build(source, defines, &options);
    };
    if let Some(code) = std::fs::read(&path).ok().and_then(|file| Some(sealed(&file, &key)?.to_vec())) {
        return Ok(Image { code, log: String::new() });
    }
    let image = build(source, defines, &options)?;
    // A folder that cannot be written is no reason to stop.
    drop(keep(&path, &image.code, &key));
    Ok(image)
}

/// Bytes of the hash at the end of a kept file.
const SEAL: usize = 32;

/// The code of a kept file; none if it is torn, damaged, or the code of another unit under this one's name: those are
/// compiled again. It is no defence against who can write the folder: they can seal what they like.
fn sealed<'a>(file: &'a [u8], key: &blake3::Hash) -> Option<&'a [u8]> {
    let (code, found) = file.split_last_chunk::<SEAL>()?;
    (!code.is_empty() && seal(code, key) == *found).then_some(code)
}

/// A hash of the code and of what it was made of.
fn seal(code: &[u8], key: &blake3::Hash) -> blake3::Hash {
    blake3::keyed_hash(key.as_bytes(), code)
}

fn keep(path: &std::path::Path, code: &[u8], key: &blake3::Hash) -> std::io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(code)?;
    file.write_all(seal(code, key).as_bytes())?;
    file.persist(path)?;
    Ok(())
}

fn key(source: &Source, defines: &[Define], options: &[String]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in [COMMON, source.name, source.text] {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    let defines = defines.iter().map(ToString::to_string);
    for option in options.iter().cloned().chain(defines) {
        hasher.update(option.as_bytes());
        hasher.update(&[0]);
    }
    let (major, minor) = version();
    hasher.update(format!("nvrtc {major}.{minor}").as_bytes());
    hasher.finalize()
}

/// The folder of compiled kernels; none if there is no home directory.
pub fn folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("ELAPID_CACHE").or_else(|| {
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("elapid").join("kernels"))
    })
}

/// NVRTC's version; (0, 0) if it is missing or does not report one.
pub fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    if library::load(Needed::Nvrtc).is_err() {
        return (0, 0);
    }
    // SAFETY: both addresses are valid.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    if status.result().is_ok() { (major, minor) } else { (0, 0) }
}

fn options((major, minor): (u32, u32)) -> Result<Vec<String>> {
    library::load(Needed::Nvrtc)?;
    let wanted = i32::try_from(major * 10 + minor).unwrap_or(0);
    let known = architectures();
    // A device that this NVRTC does not know gets PTX, which its driver translates.
    let architecture = match known.iter().rev().find(|&&known| known <= wanted) {
        Some(&known) if known < wanted => format!("compute_{known}"),
        // With the instructions that Hopper alone has.
        _ if wanted == 90 => "sm_90a".into(),
        _ => format!("sm_{wanted}"),
    };
    Ok(vec![format!("--gpu-architecture={architecture}"), "-std=c++17".into(), "-default-device".into()])
}

/// Architectures that NVRTC knows, ascending.
fn architectures() -> Vec<i32> {
    let mut count = 0;
    // SAFETY: the address is valid.
    if unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().is_err() {
        return Vec::new();
    }
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: there is room for `count` numbers.
    if unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().is_err() {
        return Vec::new();
    }
    known.sort_unstable();
    known
}

fn build(source: &Source, defines: &[Define], options: &[String]) -> Result<Image> {
    let failed =
        |call: &'static str| move |error: nvrtc::NvrtcError| Error::Call { call, reason: format!("{error:?}") };
    // Constants are defined here rather than by options: NVRTC's own headers, which come first, use short names too.
    let constants: String =
        defines.iter().map(|define| format!("#define {} {}\n", define.name, define.value)).collect();
    let text = format!("{COMMON}\n{constants}#line 1 \"{}.cu\"\n{}", source.name, source.text);
    let text =
        CString::new(text).map_err(|_| Error::Call { call: "nvrtcCreateProgram", reason: "a zero byte".into() })?;
    let program = nvrtc::create_program(&text, None).map_err(failed("nvrtcCreateProgram"))?;
    let program = Program(program);
    let mut all = options.to_vec();
    all.push("--ptxas-options=-v".into());
    // SAFETY: the program is alive.
    let compiled = unsafe { nvrtc::compile_program(program.0, &all) };
    let log = program.log();
    if compiled.is_err() {
        let options: Vec<String> = options.iter().cloned().chain(defines.iter().map(ToString::to_string)).collect();
        return Err(Error::Compile { source_name: source.name, options: options.join(" "), log });
    }
    let portable = options.iter().any(|option| option.contains("compute_"));
    let mut size = 0;
    // SAFETY: the program is compiled, and the address is valid.
    let status = unsafe {
        if portable { sys::nvrtcGetPTXSize(program.0, &mut size) } else { sys::nvrtcGetCUBINSize(program.0, &mut size) }
    };
    status.result().map_err(failed("nvrtcGetCUBINSize"))?;
    let mut code = vec![0u8; size];
    // SAFETY: there is room for `size` bytes.
    let status = unsafe {
        let data = code.as_mut_ptr().cast();
        if portable { sys::nvrtcGetPTX(program.0, data) } else { sys::nvrtcGetCUBIN(program.0, data) }
    };
    status.result().map_err(failed("nvrtcGetCUBIN"))?;
    Ok(Image { code, log })
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).collect();
        CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_or_foreign_file_is_not_taken_for_a_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inner").join("k.cubin");
        let [own, other] = ["own", "other"].map(|name| blake3::hash(name.as_bytes()));
        keep(&path, b"machine code", &own).unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(sealed(&file, &own), Some(b"machine code".as_slice()));
        assert_eq!(sealed(&file, &other), None, "the code of another kernel, renamed");
        for torn in [&file[..file.len() - 1], b"", &[0; SEAL]] {
            assert_eq!(sealed(torn, &own), None);
        }
        let mut damaged = file;
        damaged[3] ^= 1;
        assert_eq!(sealed(&damaged, &own), None);
    }

    #[test]
    fn a_key_depends_on_source_and_options() {
        static A: Source = Source { name: "a", text: "x" };
        static B: Source = Source { name: "a", text: "y" };
        if library::load(Needed::Nvrtc).is_err() {
            return;
        }
        let key = |source, n: usize| key(source, &[Define::new("N", n)], &["-std=c++17".to_owned()]);
        assert_eq!(key(&A, 1), key(&A, 1));
        assert_ne!(key(&A, 1), key(&A, 2));
        assert_ne!(key(&A, 1), key(&B, 1));
    }
}
