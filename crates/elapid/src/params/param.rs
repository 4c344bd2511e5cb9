//! A parameter, and how it is trained and stored.

use crate::Tensor;

/// The id of a parameter of a [`Params`](super::Params).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(super) usize);

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its values; on a GPU the f32 values that training changes.
    pub value: Tensor,
    /// How it is read, stored and trained.
    pub traits: Traits,
    /// What operations read if it is not `value`: a copy in the dtype of activations.
    pub(super) compute: Option<Tensor>,
}

/// How operations use a parameter, which decides its dtype in memory and in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight of matrix products: read in the dtype of activations.
    Matrix,
    /// A table of rows that are looked up (or multiplied by, if tied): treated as a matrix.
    Table,
    /// Norms, biases, convolution taps: read in f32, saved in the requested dtype.
    Vector,
    /// Parameters that a recurrence is sensitive to (`A_log`, `D`): f32 in memory and in every file.
    Precise,
    /// Saved with the model, never trained.
    Buffer,
}

/// How a parameter is read, stored and trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// How operations use it.
    pub role: Role,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Factor of the learning rate.
    pub lr: f32,
    /// Whether it is trained; otherwise it has no gradient and no optimiser state.
    pub trainable: bool,
    /// Whether only products, losses and looked-up rows read it, so that inference on a CPU may store it in another form.
    pub packs: bool,
}

impl Traits {
    /// A matrix, with weight decay.
    pub const MATRIX: Self = Self { role: Role::Matrix, decay: true, lr: 1.0, trainable: true, packs: false };
    /// A matrix that is only multiplied by, whole, with weight decay.
    pub const PROJECTION: Self = Self { packs: true, ..Self::MATRIX };
    /// A table, with weight decay.
    pub const TABLE: Self = Self { role: Role::Table, packs: true, ..Self::MATRIX };
    /// Read in f32, with weight decay: taps of a convolution.
    pub const TAPS: Self = Self { role: Role::Vector, ..Self::MATRIX };
    /// A norm or a bias, without weight decay.
    pub const VECTOR: Self = Self { role: Role::Vector, decay: false, ..Self::MATRIX };
    /// f32 everywhere, without weight decay.
    pub const PRECISE: Self = Self { role: Role::Precise, ..Self::VECTOR };
    /// Never trained.
    pub const BUFFER: Self = Self { role: Role::Buffer, trainable: false, ..Self::VECTOR };
}

impl Param {
    /// Whether operations read it in the dtype of activations; all others are read in f32.
    pub(super) fn is_matrix(&self) -> bool {
        matches!(self.traits.role, Role::Matrix | Role::Table)
    }

    /// What operations read.
    pub fn compute(&self) -> &Tensor {
        self.compute.as_ref().unwrap_or(&self.value)
    }
}
