//! Activation functions by name.

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// x.
    Identity,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al. 2021, Primer).
    SquaredRelu,
    /// x σ(x), swish.
    Silu,
    /// x Φ(x) with Φ the normal distribution (Hendrycks and Gimpel 2016).
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2: GPT-2's approximation.
    GeluTanh,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// tanh(x).
    Tanh,
    /// elu(x) + 1: x + 1 above 0, exp(x) below; the feature map of linear attention (Katharopoulos et al. 2020).
    EluPlusOne,
    /// log(1 + exp(x)).
    Softplus,
    /// log σ(x).
    LogSigmoid,
    /// log(1 - x), of numbers below 1.
    LogOneMinus,
}

/// A function between two factors: β f(α x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Map {
    /// f.
    pub f: Function,
    /// α.
    pub alpha: f32,
    /// β.
    pub beta: f32,
}

impl From<Function> for Map {
    fn from(f: Function) -> Self {
        Self { f, alpha: 1.0, beta: 1.0 }
    }
}
