//! The vector instructions of this CPU, detected once at run time.

use std::ffi::OsStr;
use std::sync::OnceLock;

use pulp::{Simd, WithSimd};

use crate::error::{Error, Result};

/// A set of vector instructions that is known to be present; a value of this type is the proof.
#[derive(Debug, Clone, Copy)]
pub enum Isa {
    /// x86-64 with AVX-512 (F, BW, CD, DQ, VL): 16 lanes of f32.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// x86-64 with AVX2 and FMA: 8 lanes of f32.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// 64-bit Arm: 4 lanes of f32.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    /// Any CPU: one lane; the compiler vectorises what it can.
    Portable,
}

impl Isa {
    /// Every set of this CPU, best first. Tests run over all of them.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(pulp::x86::V4::try_new().map(Isa::Avx512));
            found.extend(pulp::x86::V3::try_new().map(Isa::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        found.extend(pulp::aarch64::Neon::try_new().map(Isa::Neon));
        found.push(Isa::Portable);
        found
    }

    /// The set in use: the best one, or the one that the environment variable `ELAPID_ISA` names. If this CPU has no set of
    /// that name, the best one is used after a warning on stderr; [`from_env`](Self::from_env) returns the error.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Isa::available()[0];
            Isa::from_env().map_or_else(
                |error| {
                    eprintln!("warning: {error}; using {}", best.name());
                    best
                },
                |chosen| chosen.unwrap_or(best),
            )
        })
    }

    /// The set that the environment variable `ELAPID_ISA` names (`avx512`, `avx2`, `neon`, `portable`); none if it is
    /// not set or empty.
    ///
    /// # Errors
    /// If this CPU has no set of that name.
    pub fn from_env() -> Result<Option<Isa>> {
        Isa::named(&std::env::var_os("ELAPID_ISA").unwrap_or_default())
    }

    fn named(name: &OsStr) -> Result<Option<Isa>> {
        if name.is_empty() {
            return Ok(None);
        }
        let available = Isa::available();
        let found = available.iter().copied().find(|isa| name == isa.name());
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        found.map(Some).ok_or_else(|| Error {
            op: "isa",
            argument: "ELAPID_ISA",
            wanted: format!("one of {}, which this CPU has", names.join(", ")),
            got: format!("`{}`", name.to_string_lossy()),
        })
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            Isa::Portable => "portable",
        }
    }

    /// Lanes of f32 in a vector.
    pub fn lanes(self) -> usize {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        self.run(Lanes)
    }

    /// Runs a kernel compiled for this set. A kernel is a struct of its arguments.
    #[inline]
    pub fn run<K: WithSimd>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => Simd::vectorize(simd, kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => Simd::vectorize(simd, kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(simd) => Simd::vectorize(simd, kernel),
            Isa::Portable => kernel.with_simd(pulp::Scalar::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_this_cpu_does_not_have_is_an_error_that_lists_those_it_has() {
        assert!(Isa::named(OsStr::new("")).unwrap().is_none());
        for isa in Isa::available() {
            assert_eq!(Isa::named(OsStr::new(isa.name())).unwrap().map(Isa::name), Some(isa.name()));
        }
        for wrong in ["avx1024", "AVX2", " portable"] {
            let error = Isa::named(OsStr::new(wrong)).unwrap_err().to_string();
            assert!(error.contains("`ELAPID_ISA`: wanted one of ") && error.contains(wrong), "{error}");
            assert!(error.contains("portable, which this CPU has"), "{error}");
        }
    }
}
