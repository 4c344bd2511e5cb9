//! Errors of devices.

use std::path::PathBuf;

/// An error of a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A library is missing.
    #[error("{what} was not found ({searched}). {fix}")]
    Missing {
        /// The library.
        what: &'static str,
        /// Where it was looked for.
        searched: String,
        /// How to get it.
        fix: &'static str,
    },
    /// There is no such device.
    #[error("cuda:{ordinal} does not exist: {found}")]
    NoDevice {
        /// The requested number.
        ordinal: usize,
        /// The available devices.
        found: String,
    },
    /// A call of the driver or a library failed.
    #[error("{call}: {reason}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its error.
        reason: String,
    },
    /// The device has too little memory.
    #[error(
        "the GPU has no {} of memory left: {} in use by this process, {} free of {}. Use a smaller batch or length, \
         train.checkpoint_blocks = true, or a larger GPU",
        size(*.wanted), size(*.used), size(*.free), size(*.total)
    )]
    Memory {
        /// Bytes requested.
        wanted: usize,
        /// Bytes that this process holds.
        used: usize,
        /// Bytes free.
        free: usize,
        /// Total bytes.
        total: usize,
    },
    /// A kernel does not compile.
    #[error("kernel {source_name} ({options}) does not compile: this is a bug in elapid\n{log}")]
    Compile {
        /// The source.
        source_name: &'static str,
        /// The options.
        options: String,
        /// The compiler's log.
        log: String,
    },
    /// A compiled kernel cannot be cached or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// An argument breaks the contract of an operation.
    #[error(transparent)]
    Argument(#[from] crate::Error),
}

/// The result of work on a device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error of a driver call.
    pub(crate) fn driver(call: &'static str) -> impl Fn(cudarc::driver::DriverError) -> Error {
        move |error| {
            let name = error.error_name().map_or_else(|_| "unknown error".into(), |name| name.to_string_lossy());
            let text = error.error_string().map_or_else(|_| String::new().into(), |text| text.to_string_lossy());
            Error::Call { call, reason: format!("{name}: {text}") }
        }
    }
}

fn size(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}
