//! Finding CUDA's libraries at run time; they are never linked.
//!
//! Only absolute folders are searched: a relative one, such as `.` in `PATH`, would load code from wherever the program was
//! started. Looked for, in this order: what the dynamic linker finds by itself (`LD_LIBRARY_PATH`, `ldconfig`),
//! `CUDA_HOME` and `CUDA_PATH`, toolkits under `/usr/local` and `/opt`, and the `nvidia-*` wheels of Python environments
//! (`VIRTUAL_ENV`, `CONDA_PREFIX`, user and system `site-packages`, the environment of a `python3` on `PATH`).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use super::{Error, Result};

/// A library that work on a GPU needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Needed {
    /// The driver.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Matrix products.
    CublasLt,
    /// Sums over several GPUs; for training on more than one.
    Nccl,
}

impl Needed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Driver, Self::Nvrtc, Self::CublasLt, Self::Nccl];

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Nccl => "NCCL",
        }
    }

    /// How to get it.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Driver => "Install NVIDIA's driver (580 or newer; `nvidia-smi` must work), or use --device cpu",
            Self::Nvrtc => {
                "Install it by `pip install nvidia-cuda-nvrtc` or with a CUDA 13 toolkit, or point LD_LIBRARY_PATH at it"
            }
            Self::CublasLt => {
                "Install it by `pip install nvidia-cublas` or with a CUDA 13 toolkit, or point LD_LIBRARY_PATH at it"
            }
            Self::Nccl => "Install it by `pip install nvidia-nccl-cu13`, or point LD_LIBRARY_PATH at it",
        }
    }

    /// File names, the best first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1", "libcuda.so"],
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            Self::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
            Self::Nccl => &["libnccl.so.2", "libnccl.so"],
        }
    }

    /// Libraries that must be loaded before it, from the same folder or by name.
    fn before(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so"],
            _ => &[],
        }
    }
}

/// A library that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its file, or its bare name if the dynamic linker knows where it is.
    pub path: PathBuf,
}

/// Loads a library once; it stays loaded.
///
/// # Errors
/// If it is not found, or does not load.
pub fn load(needed: Needed) -> Result<Found> {
    static LOADED: OnceLock<Mutex<HashMap<Needed, Found>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = loaded.get(&needed) {
        return Ok(found.clone());
    }
    let found = search(needed)?;
    loaded.insert(needed, found.clone());
    Ok(found)
}

/// A loaded library's function table: for those whose functions are not called through `cudarc`.
pub(crate) fn open(needed: Needed) -> Result<Library> {
    let found = load(needed)?;
    try_load(&found.path).ok_or_else(|| missing(needed, &[]))
}

fn search(needed: Needed) -> Result<Found> {
    let folders = folders();
    let by_name = needed.files().iter().map(PathBuf::from);
    let in_folders = folders.iter().flat_map(|folder| needed.files().iter().map(|file| folder.join(file)));
    for path in by_name.chain(in_folders) {
        if path.components().count() > 1 {
            if !path.exists() {
                continue;
            }
            for before in needed.before() {
                let beside = path.with_file_name(before);
                if let Some(library) = beside.exists().then(|| try_load(&beside)).flatten() {
                    std::mem::forget(library);
                    break;
                }
            }
        }
        if let Some(library) = try_load(&path) {
            // cudarc loads it by name, and gets a library that is already loaded under that name.
            std::mem::forget(library);
            return Ok(Found { path });
        }
    }
    Err(missing(needed, &folders))
}

fn try_load(path: &Path) -> Option<Library> {
    // SAFETY: initialisers of NVIDIA's libraries have no requirements.
    unsafe { Library::new(path) }.ok()
}

fn missing(needed: Needed, folders: &[PathBuf]) -> Error {
    let searched = match folders {
        [] => "not on the linker's path".to_owned(),
        _ => format!("looked for {} by name and in {} folders", needed.files()[0], folders.len()),
    };
    Error::Missing { what: needed.name(), searched, fix: needed.fix() }
}

/// Folders that hold NVIDIA's libraries on this machine.
pub fn folders() -> Vec<PathBuf> {
    folders_of(&|name| std::env::var_os(name))
}

/// A variable of the environment.
type Env<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

fn folders_of(env: &Env<'_>) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let from_env = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].iter().filter_map(|name| env(name)).map(PathBuf::from);
    for toolkit in from_env.chain(toolkits()) {
        for inside in ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"] {
            folders.push(toolkit.join(inside));
        }
    }
    folders.push("/usr/local/nvidia/lib64".into());
    folders.push("/usr/lib/x86_64-linux-gnu".into());
    folders.push("/usr/lib/wsl/lib".into());
    for site in site_packages(env) {
        let Ok(packages) = site.join("nvidia").read_dir() else { continue };
        folders.extend(packages.flatten().map(|package| package.path().join("lib")));
    }
    folders.retain(|folder| folder.is_absolute() && folder.is_dir());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

fn toolkits() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["/usr/local", "/opt"]
        .iter()
        .filter_map(|root| Path::new(root).read_dir().ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda")))
        .collect();
    // `cuda` itself first, the administrator's choice; then the newest.
    found.sort_by_key(|path| (path.file_name().is_some_and(|name| name != "cuda"), std::cmp::Reverse(path.clone())));
    found
}

fn site_packages(env: &Env<'_>) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| env(name)).map(PathBuf::from).collect();
    let interpreters = env("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    for folder in interpreters.unwrap_or_default().into_iter().filter(|folder| folder.is_absolute()) {
        for link in [folder.join("python3"), folder.join("python")] {
            if link.exists() {
                roots.extend(folder.parent().map(Path::to_owned));
                let real = link.canonicalize().ok();
                roots.extend(real.and_then(|real| Some(real.parent()?.parent()?.to_owned())));
            }
        }
    }
    if let Some(home) = env("HOME") {
        roots.push(Path::new(&home).join(".local"));
    }
    roots.extend(["/usr/local", "/usr", "/opt/conda"].map(PathBuf::from));
    let mut sites = Vec::new();
    for root in roots {
        for lib in ["lib", "lib64"] {
            let Ok(entries) = root.join(lib).read_dir() else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with("python") {
                    sites.extend(["site-packages", "dist-packages"].map(|name| entry.path().join(name)));
                }
            }
        }
    }
    sites.dedup();
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment with a Python that has a CUDA library, named by a relative and by an absolute path.
    #[test]
    fn relative_folders_are_not_searched() {
        let here = std::env::current_dir().unwrap();
        let inside = tempfile::tempdir_in(&here).unwrap();
        let library = inside.path().join("lib/python3.12/site-packages/nvidia/nvrtc/lib");
        std::fs::create_dir_all(&library).unwrap();
        std::fs::create_dir_all(inside.path().join("bin")).unwrap();
        std::fs::write(inside.path().join("bin/python3"), "").unwrap();
        let name = PathBuf::from(inside.path().file_name().unwrap());
        for variable in ["PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
            let found = |root: &Path| {
                let value = if variable == "PATH" { root.join("bin") } else { root.to_owned() };
                folders_of(&|asked| (asked == variable).then(|| value.clone().into_os_string()))
            };
            assert!(found(inside.path()).contains(&library), "{variable}");
            let relative = found(&name);
            assert!(relative.iter().all(|folder| folder.is_absolute()), "{variable}: {relative:?}");
            assert!(!relative.iter().any(|folder| folder.starts_with(inside.path())), "{variable}: {relative:?}");
        }
        for dots in [".:", "", "./bin:..", "bin"] {
            let found = folders_of(&|asked| (asked == "PATH").then(|| dots.into()));
            assert!(found.iter().all(|folder| folder.is_absolute()), "{dots}: {found:?}");
        }
    }
}
