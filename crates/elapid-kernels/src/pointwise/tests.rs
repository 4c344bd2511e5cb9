use super::*;
use crate::testing::{Random, central_difference, err_ratio, wide};
use crate::{Rows, RowsMut};

pub(super) const ALL: [Function; 11] = [
    Function::Identity,
    Function::Relu,
    Function::SquaredRelu,
    Function::Silu,
    Function::Gelu,
    Function::GeluTanh,
    Function::Sigmoid,
    Function::Tanh,
    Function::EluPlusOne,
    Function::Softplus,
    Function::LogSigmoid,
];

/// By Python's `math` (erf, tanh, exp) at -1.5, 0.3 and 2.
#[test]
fn values_are_those_of_the_formulas() {
    let wanted = [
        (Function::Silu, [-0.273_638_285_709_534_5, 0.172_332_755_043_497_7, 1.761_594_155_955_764_9]),
        (Function::Gelu, [-0.100_210_801_903_287_13, 0.185_373_426_656_685_7, 1.954_499_736_103_641_6]),
        (Function::GeluTanh, [-0.100_428_423_019_767_07, 0.185_370_923_542_759_2, 1.954_597_694_087_775]),
        (Function::SquaredRelu, [0.0, 0.09, 4.0]),
    ];
    for (f, want) in wanted {
        for (x, want) in [-1.5_f64, 0.3, 2.0].into_iter().zip(want) {
            assert!((naive::value(f, x) - want).abs() < 1e-12, "{f:?} {x}: {} {want}", naive::value(f, x));
        }
    }
}

#[test]
fn naive_gradients_are_difference_quotients() {
    let mut random = Random::new(1);
    let (m, d) = (3, 4);
    // Away from 0, where relu has a corner.
    let x: Vec<f64> = random.normal(m * 2 * d).iter().map(|&x| f64::from(x) + 0.05f64.copysign(f64::from(x))).collect();
    let dy = wide(&random.normal(m * 2 * d));
    let dot = |y: &[f64]| y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
    let scaled = Map { f: Function::Gelu, alpha: 0.7, beta: -1.5 };
    for f in ALL.map(Map::from).into_iter().chain([scaled]) {
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; x.len()];
            naive::forward(f, Rows::new(x, 2 * d), RowsMut::new(&mut y, 2 * d));
            dot(&y)
        };
        let mut dx = vec![0.0; x.len()];
        naive::backward(f, Rows::new(&x, 2 * d), Rows::new(&dy, 2 * d), RowsMut::new(&mut dx, 2 * d));
        assert!(central_difference(loss, &x, &dx) < 1e-7, "{f:?}");
        let glu = |x: &[f64]| {
            let mut y = vec![0.0; m * d];
            let xz = Rows::new(x, 2 * d);
            naive::glu_forward(f, xz.columns(0, d), xz.columns(d, d), RowsMut::new(&mut y, d));
            dot(&y)
        };
        let (short, mut dxz) = (&dy[..m * d], vec![0.0; x.len()]);
        let (xz, (dx, dz)) = (Rows::new(&x, 2 * d), RowsMut::new(&mut dxz, 2 * d).split_columns(d));
        naive::glu_backward(f, xz.columns(0, d), xz.columns(d, d), Rows::new(short, d), dx, dz);
        assert!(central_difference(glu, &x, &dxz) < 1e-7, "{f:?} glu");
    }
}

#[test]
fn f32_is_f64_on_any_number_of_rows() {
    let mut random = Random::new(2);
    for (m, d) in [(0, 3), (1, 1), (700, 33)] {
        let (x, z) = (random.normal(m * d), random.normal(m * 2 * d));
        for f in ALL {
            let (mut y, mut want) = (vec![f32::NAN; m * d], vec![0.0; m * d]);
            forward(f, Rows::new(&x, d), RowsMut::new(&mut y, d)).unwrap();
            naive::forward(f, Rows::new(&wide(&x), d), RowsMut::new(&mut want, d));
            assert!(err_ratio(&want, &y) < 1e-6, "{f:?}");
            let xz = Rows::new(&z, 2 * d);
            glu_forward(f, xz.columns(0, d), xz.columns(d, d), RowsMut::new(&mut y, d)).unwrap();
            let wide = wide(&z);
            let xz = Rows::new(&wide, 2 * d);
            naive::glu_forward(f, xz.columns(0, d), xz.columns(d, d), RowsMut::new(&mut want, d));
            assert!(err_ratio(&want, &y) < 1e-6, "{f:?} glu");
        }
        let mut y = vec![f32::NAN; m * d];
        add_scaled(2.0, Rows::new(&x, d), Some((-0.5, Rows::new(&x, d).into())), RowsMut::new(&mut y, d)).unwrap();
        assert!(y.iter().zip(&x).all(|(y, x)| (y - 1.5 * x).abs() <= 1e-6 * x.abs()));
        add_constant(Rows::new(&x, d), 1.0, RowsMut::new(&mut y, d)).unwrap();
        assert!(y.iter().zip(&x).all(|(y, x)| *y == x + 1.0));
    }
    let (x, mut y) = ([0.0; 6], [0.0; 4]);
    assert!(forward(Function::Relu, Rows::new(&x, 3), RowsMut::new(&mut y, 2)).is_err());
    assert!(glu_forward(Function::Relu, Rows::new(&x, 3), Rows::new(&x, 3), RowsMut::new(&mut y, 2)).is_err());
}

#[test]
fn logarithms_of_what_is_left() {
    let x: Vec<f64> = vec![-3.0, -0.5, 0.0, 1e-9, 0.3, 0.999];
    let run = |x: &[f64]| {
        let mut y = vec![0.0; x.len()];
        naive::forward(Function::LogOneMinus, Rows::new(x, x.len()), RowsMut::new(&mut y, x.len()));
        y
    };
    assert!(run(&x).iter().zip(&x).all(|(y, x)| (y - (-x).ln_1p()).abs() < 1e-15));
    let mut dx = vec![0.0; x.len()];
    let (ones, n) = (vec![1.0; x.len()], x.len());
    naive::backward(Function::LogOneMinus, Rows::new(&x, n), Rows::new(&ones, n), RowsMut::new(&mut dx, n));
    assert!(dx.iter().zip(&x).all(|(d, x)| (d + 1.0 / (1.0 - x)).abs() < 1e-9));
}
