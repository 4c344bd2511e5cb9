//! `Args` of `args.cuh`.

use crate::cuda::{Define, Mat, MatMut, RawMat, Result};
use crate::linear_attention::args::{Args, CHECK, Decay, Dims, Grads, Outputs};
use crate::{DType, cuda};

/// The widest key and value.
const WIDEST: [(&str, usize); 2] = [("k", 288), ("v", 512)];

/// `Args` of the sources.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Raw {
    pub(super) q: RawMat,
    pub(super) k: RawMat,
    pub(super) v: RawMat,
    pub(super) y: RawMat,
    pub(super) dy: RawMat,
    pub(super) dq: RawMat,
    pub(super) dk: RawMat,
    pub(super) dv: RawMat,
    pub(super) write: RawMat,
    pub(super) dwrite: RawMat,
    pub(super) decay: RawMat,
    pub(super) ddecay: RawMat,
    pub(super) dr: RawMat,
    pub(super) constant: u64,
    pub(super) bonus: u64,
    pub(super) skip: u64,
    pub(super) initial: u64,
    pub(super) dlast: u64,
    pub(super) last: u64,
    pub(super) dinitial: u64,
    pub(super) lengths: u64,
    pub(super) resets: u64,
    pub(super) divisors: u64,
    pub(super) ddivisors: u64,
    pub(super) states: u64,
    pub(super) dq_heads: u64,
    pub(super) dk_heads: u64,
    pub(super) ddecay_heads: u64,
    pub(super) dconstant_rows: u64,
    pub(super) dbonus_rows: u64,
    pub(super) dskip_rows: u64,
    pub(super) dconstant: u64,
    pub(super) dbonus: u64,
    pub(super) dskip: u64,
    pub(super) sums: u64,
    pub(super) starts: u64,
    pub(super) before: u64,
    pub(super) dafter: u64,
    pub(super) of_queries: u64,
    pub(super) of_keys: u64,
    pub(super) of_inter: u64,
    pub(super) of_write: u64,
    pub(super) of_pass: u64,
    pub(super) scaled: u64,
    pub(super) passes: u64,
    pub(super) ends: u64,
    pub(super) ends_passes: u64,
    pub(super) z: u64,
    pub(super) dz: u64,
    pub(super) shares: i64,
    pub(super) l: i64,
    pub(super) chunks: i64,
    pub(super) scale: f32,
    pub(super) eps: f32,
    pub(super) b: i32,
    pub(super) heads: i32,
    pub(super) groups: i32,
    pub(super) keys: i32,
    pub(super) values: i32,
    pub(super) columns: i32,
    pub(super) skip_channels: i32,
    pub(super) parts: i32,
    pub(super) together: i32,
    pub(super) segments: i32,
}

impl Raw {
    /// What all kernels read.
    // Long: the fields of the struct, most of them absent.
    pub(super) fn new(dims: Dims, args: &Args<Mat<'_>>) -> Result<Self> {
        for ((name, most), size) in WIDEST.into_iter().zip([dims.k, dims.v]) {
            CHECK.that(size <= most, name, || format!("at most {most} on a GPU"), || size.to_string())?;
        }
        let count = |name, x: usize| i32::try_from(x).map_err(|_| CHECK.fault(name, "fewer".into(), x.to_string()));
        let null = RawMat::NULL;
        let flat = |x: Option<Mat<'_>>| x.map_or(0, |x| x.address());
        let (constant, decay) = match args.decay {
            Decay::None => (0, null),
            Decay::Head(x) | Decay::Key(x) => (x.address(), null),
            Decay::HeadVarying(x) | Decay::KeyVarying(x) => (0, x.raw()),
        };
        Ok(Self {
            q: args.q.raw(),
            k: args.k.raw(),
            v: args.v.raw(),
            y: null,
            dy: null,
            dq: null,
            dk: null,
            dv: null,
            write: args.write.map_or(null, |write| write.raw()),
            dwrite: null,
            decay,
            ddecay: null,
            dr: null,
            constant,
            bonus: flat(args.bonus),
            skip: flat(args.skip),
            initial: flat(args.initial),
            dlast: 0,
            last: 0,
            dinitial: 0,
            lengths: args.segments.lengths_address(),
            resets: args.segments.resets_address(),
            divisors: 0,
            ddivisors: 0,
            states: 0,
            dq_heads: 0,
            dk_heads: 0,
            ddecay_heads: 0,
            dconstant_rows: 0,
            dbonus_rows: 0,
            dskip_rows: 0,
            dconstant: 0,
            dbonus: 0,
            dskip: 0,
            sums: 0,
            starts: 0,
            before: 0,
            dafter: 0,
            of_queries: 0,
            of_keys: 0,
            of_inter: 0,
            of_write: 0,
            of_pass: 0,
            scaled: 0,
            passes: 0,
            ends: 0,
            ends_passes: 0,
            z: 0,
            dz: 0,
            shares: 0,
            l: dims.l as i64,
            chunks: 0,
            scale: args.scale,
            eps: args.normaliser.unwrap_or(0.0),
            b: count("q", dims.b)?,
            heads: count("heads", dims.heads)?,
            groups: count("groups", dims.groups)?,
            keys: count("k", dims.k)?,
            values: count("v", dims.v)?,
            columns: count("v", dims.columns(args.normaliser.is_some()))?,
            skip_channels: i32::from(args.skip.is_some_and(|skip| skip.len() != dims.heads)),
            parts: 0,
            together: 0,
            segments: 1,
        })
    }

    /// With what a backward reads and writes of the caller's.
    pub(super) fn with_gradients(self, outputs: &Outputs<Mat<'_>>, grads: &Grads<MatMut<'_>>) -> Self {
        let raw = |m: &Option<MatMut<'_>>| m.as_ref().map_or(RawMat::NULL, MatMut::raw);
        let flat = |m: &Option<MatMut<'_>>| m.as_ref().map_or(0, MatMut::address);
        Self {
            y: outputs.y.raw(),
            dy: outputs.dy.raw(),
            dlast: outputs.dlast.map_or(0, |dlast| dlast.address()),
            dq: grads.dq.raw(),
            dk: grads.dk.raw(),
            dv: grads.dv.raw(),
            ddecay: raw(&grads.ddecay),
            dwrite: raw(&grads.dwrite),
            dconstant: flat(&grads.ddecay_constant),
            dbonus: flat(&grads.dbonus),
            dskip: flat(&grads.dskip),
            dinitial: flat(&grads.dinitial),
            ..self
        }
    }
}

/// What the sources are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Special {
    pub(super) dtype: DType,
    /// As `DECAY` of `args.cuh` counts, and the dtype of one that varies.
    pub(super) decay: (usize, DType),
    pub(super) bonus: bool,
    pub(super) normalised: bool,
}

impl Special {
    pub(super) fn new(args: &Args<Mat<'_>>) -> Self {
        let decay = match args.decay {
            Decay::None => (0, DType::F32),
            Decay::Head(_) => (1, DType::F32),
            Decay::HeadVarying(x) => (2, x.dtype()),
            Decay::Key(_) => (3, DType::F32),
            Decay::KeyVarying(x) => (4, x.dtype()),
        };
        Self { dtype: args.q.dtype(), decay, bonus: args.bonus.is_some(), normalised: args.normaliser.is_some() }
    }

    pub(super) fn defines(&self) -> Vec<Define> {
        vec![
            Define::dtype("T", self.dtype),
            Define::new("DECAY", self.decay.0),
            Define::dtype("D", self.decay.1),
            Define::new("BONUS", u8::from(self.bonus)),
            Define::new("NORM", u8::from(self.normalised)),
        ]
    }
}

/// An address, 0 if there is none.
pub(super) fn address(buffer: &Option<cuda::Buffer>) -> u64 {
    buffer.as_ref().map_or(0, cuda::Buffer::address)
}
