//! Which kernel a call takes, and how that divides its work.

use crate::DType;
use crate::cuda::{Define, Source, Unit};

pub(super) static DOCUMENTS: Source =
    Source { name: "attention_documents", text: concat!(include_str!("../mask.cuh"), include_str!("../documents.cu")) };
pub(super) static SINKS: Source =
    Source { name: "attention_sinks", text: concat!(include_str!("../mask.cuh"), include_str!("../sinks.cu")) };
static FORWARD: Source = Source {
    name: "attention_forward",
    text: concat!(include_str!("../mask.cuh"), include_str!("../tensor.cuh"), include_str!("../tensor_forward.cu")),
};
static QUERIES: Source = Source {
    name: "attention_queries",
    text: concat!(include_str!("../mask.cuh"), include_str!("../tensor.cuh"), include_str!("../tensor_queries.cu")),
};
static KEYS: Source = Source {
    name: "attention_keys",
    text: concat!(include_str!("../mask.cuh"), include_str!("../tensor.cuh"), include_str!("../tensor_keys.cu")),
};
static HOPPER_FORWARD: Source = Source {
    name: "attention_hopper_forward",
    text: concat!(include_str!("../mask.cuh"), include_str!("../hopper.cuh"), include_str!("../tensor_forward.cu")),
};
static HOPPER_QUERIES: Source = Source {
    name: "attention_hopper_queries",
    text: concat!(include_str!("../mask.cuh"), include_str!("../hopper.cuh"), include_str!("../tensor_queries.cu")),
};
static HOPPER_KEYS: Source = Source {
    name: "attention_hopper_keys",
    text: concat!(include_str!("../mask.cuh"), include_str!("../hopper.cuh"), include_str!("../tensor_keys.cu")),
};
static PLAIN: Source =
    Source { name: "attention_plain", text: concat!(include_str!("../mask.cuh"), include_str!("../plain.cu")) };

/// How much the kernels must know of the mask: `MASK` of `mask.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mask {
    /// Everything before, and every row is one document.
    Causal = 0,
    /// Documents, a window, sinks.
    Window = 1,
    /// Anything else, position by position.
    Sparse = 2,
}

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Special {
    /// Whether on tensor cores.
    pub(super) tensor: bool,
    pub(super) dtype: DType,
    /// Columns of a head of keys, and of values.
    pub(super) hk: usize,
    pub(super) hv: usize,
    pub(super) mask: Mask,
    /// Whether scores are more than scaled products.
    pub(super) scores: bool,
}

impl Special {
    /// Columns of the wider head, as tensor cores see it.
    fn width(&self) -> usize {
        self.hk.max(self.hv).next_multiple_of(16)
    }
}

/// A kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Forward,
    Queries,
    /// dk and dv.
    Keys,
    /// dk alone.
    KeysK,
    /// dv alone.
    KeysV,
}

impl Kind {
    /// The launches for dk and dv: of wide heads one at a time, for want of registers.
    pub(super) fn of_keys(special: &Special) -> &'static [Self] {
        if special.tensor && special.width() > 128 { &[Self::KeysK, Self::KeysV] } else { &[Self::Keys] }
    }

    pub(super) fn entry(self) -> &'static str {
        self.entries()[0]
    }

    fn entries(self) -> &'static [&'static str] {
        match self {
            Self::Forward => &["forward"],
            Self::Queries => &["backward_queries"],
            Self::Keys | Self::KeysK | Self::KeysV => &["backward_keys"],
        }
    }
}

/// How a kernel divides its work.
pub(super) struct Form {
    kind: Kind,
    special: Special,
    /// Whether by Hopper's own instructions.
    hopper: bool,
    /// 16-row tiles of a warp: `MT`.
    rows: usize,
    warps: usize,
    /// Positions of a tile that is walked over: `BN`, in the kernel for keys `BM`.
    step: usize,
    /// Whether what a warp owns stays in registers.
    keep: bool,
    /// Blocks per multiprocessor.
    blocks: usize,
}

impl Form {
    /// The fastest of those measured on an H100, at widths of 64 and 128; the others follow from the registers.
    pub(super) fn new(kind: Kind, special: &Special, capability: (u32, u32)) -> Self {
        let plain = special.mask != Mask::Sparse && !special.scores;
        let widths = [special.hk, special.hv].iter().all(|width| matches!(width, 64 | 128));
        if special.tensor && plain && widths && capability == (9, 0) {
            return Self::hopper(kind, special);
        }
        let of_keys = !matches!(kind, Kind::Forward | Kind::Queries);
        let causal = special.mask == Mask::Causal;
        let (rows, step, keep, blocks) = match (special.width(), kind) {
            (..=64, Kind::Forward) if plain => (2, 64, true, 2),
            (..=64, Kind::Queries) if plain => (2, 32, true, 2),
            (..=64, _) if plain => (2, 32, false, 2),
            (..=128, Kind::Forward) if plain => (2, 32, false, 2),
            // With more to tell of the mask, two rows of tiles do not fit into the registers.
            (width @ ..=128, Kind::Queries) if plain && (causal || width <= 96) => (2, 32, false, 2),
            (..=128, _) if of_keys && !plain => (1, 32, false, 2),
            (..=128, _) => (1, 64, false, 2),
            _ => (1, 32, false, 1),
        };
        let form = Self { kind, special: *special, hopper: false, rows, warps: 4, step, keep, blocks };
        // Of 99 KiB of shared memory per block, as most GPUs have that are not for data centres.
        let large = matches!(capability, (8, 0) | (8, 7) | (9, _) | (10, _) | (11, _));
        match large || form.shared() < 96 << 10 {
            true => form,
            false => Self { warps: if special.width() > 128 { 2 } else { 4 }, step: step / 2, blocks: 1, ..form },
        }
    }

    /// The fastest of those measured on an H200.
    fn hopper(kind: Kind, special: &Special) -> Self {
        let (warps, step, blocks) = match (kind, special.width()) {
            (Kind::Forward, 64) => (4, 128, 3),
            (Kind::Forward, _) => (8, 128, 1),
            (_, 64) => (4, 64, 3),
            _ => (4, 64, 2),
        };
        Self { kind, special: *special, hopper: true, rows: 1, warps, step, keep: false, blocks }
    }

    /// Positions that a block owns.
    pub(super) fn tile(&self) -> usize {
        match self.special.tensor {
            true => self.warps * self.rows * 16,
            false if self.special.hk > 128 || self.special.hv > 128 => 16,
            false => 32,
        }
    }

    pub(super) fn threads(&self) -> usize {
        if self.special.tensor { 32 * self.warps } else { 128 }
    }

    /// Bytes of shared memory, as the kernels divide it.
    pub(super) fn shared(&self) -> usize {
        let Special { tensor, hk, hv, .. } = self.special;
        let tile = self.tile();
        if !tensor {
            let (lk, lv, scores) = (hk | 1, hv | 1, tile * (tile + 1));
            return 4 * match self.kind {
                Kind::Forward => tile * (2 * lk + lv) + scores,
                Kind::Queries => 2 * tile * (lk + lv) + scores,
                _ => 2 * tile * (lk + lv) + 2 * scores,
            };
        }
        let of_keys = !matches!(self.kind, Kind::Forward | Kind::Queries);
        if self.hopper {
            let owned = if self.kind == Kind::Forward { hk.max(hv) } else { hk + hv };
            let per_query = if of_keys { (12 * self.step).next_multiple_of(1024) } else { 0 };
            // Tiles begin at multiples of 1024.
            return 2 * tile * owned + 2 * (2 * self.step * (hk + hv) + per_query) + 1024;
        }
        let (lk, lv) = (hk.next_multiple_of(16) + 8, hv.next_multiple_of(16) + 8);
        let stages = 2 * self.step * (lk + lv);
        match self.kind {
            Kind::Forward => 2 * (tile * lk.max(lv) + stages),
            Kind::Queries => 2 * (tile * (lk + lv) + stages),
            _ => 2 * (tile * (lk + lv) + stages) + 24 * self.step,
        }
    }

    pub(super) fn source(&self) -> &'static Source {
        let [forward, queries, keys] = match (self.special.tensor, self.hopper) {
            (false, _) => return &PLAIN,
            (true, false) => [&FORWARD, &QUERIES, &KEYS],
            (true, true) => [&HOPPER_FORWARD, &HOPPER_QUERIES, &HOPPER_KEYS],
        };
        match self.kind {
            Kind::Forward => forward,
            Kind::Queries => queries,
            Kind::Keys | Kind::KeysK | Kind::KeysV => keys,
        }
    }

    pub(super) fn defines(&self) -> Vec<Define> {
        let Special { tensor, dtype, hk, hv, mask, scores } = self.special;
        let mut defines = vec![Define::dtype("T", dtype), Define::new("HK", hk), Define::new("HV", hv)];
        if !tensor {
            // One kernel for all masks beside the common one.
            defines.push(Define::new("MASK", if mask == Mask::Causal { 0 } else { 2 }));
            return defines;
        }
        let of_keys = !matches!(self.kind, Kind::Forward | Kind::Queries);
        defines.extend([
            Define::new("MASK", mask as u8),
            Define::new("SCORES", u8::from(scores)),
            Define::new("MT", self.rows),
            Define::new("WARPS", self.warps),
            Define::new(if of_keys { "BM" } else { "BN" }, self.step),
            Define::new("KEEP", u8::from(self.keep)),
            Define::new("BLOCKS", self.blocks),
        ]);
        match self.kind {
            Kind::Keys => defines.push(Define::new("GRADS", 3)),
            Kind::KeysK => defines.push(Define::new("GRADS", 1)),
            Kind::KeysV => defines.push(Define::new("GRADS", 2)),
            Kind::Forward | Kind::Queries => {}
        }
        defines
    }

    fn unit(&self) -> Unit {
        let all: &'static [&'static str] = &["forward", "backward_queries", "backward_keys"];
        let entries = if self.special.tensor { self.kind.entries() } else { all };
        Unit { source: self.source(), entries, defines: self.defines() }
    }
}

/// The constants of `documents.cu` and `sinks.cu`.
pub(super) fn documents() -> Vec<Define> {
    vec![Define::dtype("T", DType::F32), Define::new("MASK", 1)]
}

/// Specialisations: widths and masks of usual models, and the widest heads.
pub(crate) fn units() -> Vec<Unit> {
    let mut units = vec![
        Unit { source: &DOCUMENTS, entries: &["documents"], defines: documents() },
        Unit { source: &SINKS, entries: &["sinks"], defines: documents() },
    ];
    let (ampere, hopper) = ((8, 0), (9, 0));
    for (width, mask, scores) in [
        (64, Mask::Causal, false),
        (64, Mask::Window, false),
        (64, Mask::Sparse, true),
        (96, Mask::Window, false),
        (128, Mask::Causal, false),
        (128, Mask::Window, false),
        (128, Mask::Sparse, true),
        (256, Mask::Window, false),
        (256, Mask::Sparse, true),
    ] {
        let special = Special { tensor: true, dtype: DType::Bf16, hk: width, hv: width, mask, scores };
        let kinds = [Kind::Forward, Kind::Queries].iter().chain(Kind::of_keys(&special));
        for &kind in kinds {
            let forms = [ampere, hopper].map(|capability| Form::new(kind, &special, capability));
            units.extend(forms.iter().filter(|form| form.hopper).map(Form::unit));
            units.push(forms[0].unit());
        }
    }
    for (dtype, width, mask) in [
        (DType::F32, 64, Mask::Causal),
        (DType::F32, 128, Mask::Sparse),
        (DType::F32, 256, Mask::Sparse),
        (DType::Bf16, 7, Mask::Sparse),
    ] {
        let special = Special { tensor: false, dtype, hk: width, hv: width, mask, scores: true };
        units.push(Form::new(Kind::Forward, &special, ampere).unit());
    }
    units
}
