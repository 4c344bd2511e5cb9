//! The float type of the oracles.

/// `f32` or `f64`: what `naive.rs` files are generic over. In `f64` they are the oracles of every fast kernel.
pub trait Float:
    num_traits::Float
    + num_traits::NumAssign
    + num_traits::FromPrimitive
    + std::iter::Sum
    + Send
    + Sync
    + std::fmt::Debug
    + 'static
{
    /// The nearest value of this type.
    fn of(x: f64) -> Self {
        Self::from_f64(x).unwrap_or_else(Self::nan)
    }

    /// log(1 + exp(x)), x itself above 20, as in PyTorch.
    fn softplus(self) -> Self {
        if self > Self::of(20.0) { self } else { self.exp().ln_1p() }
    }

    /// 1 / (1 + exp(-x)).
    fn sigmoid(self) -> Self {
        (Self::one() + (-self).exp()).recip()
    }

    /// x sigmoid(x).
    fn silu(self) -> Self {
        self * self.sigmoid()
    }

    /// The error function.
    fn erf(self) -> Self {
        Self::of(libm::erf(self.to_f64().unwrap_or(f64::NAN)))
    }

    /// The derivative of x sigmoid(x).
    fn dsilu(self) -> Self {
        let s = self.sigmoid();
        s * (Self::one() + self * (Self::one() - s))
    }
}

impl Float for f32 {}
impl Float for f64 {}
