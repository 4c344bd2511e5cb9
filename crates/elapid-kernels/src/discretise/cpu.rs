//! On the CPU: factors in f64 by `naive`, one for each mode; products in f32, row by row, which compilers vectorise. All is less
//! than one position of the product behind it.

use super::args::{Args, Form, Grads};
use super::naive::{Complex, Mode, mode};
use crate::{Rows, RowsMut};

pub(super) fn forward(form: Form, args: &Args<Rows<'_>>, a: &mut [f32], b: RowsMut<'_>) {
    let n = args.params[0].len();
    let (mut real, mut imaginary) = b.split_rows(n);
    for i in 0..n {
        let mode = of(form, args, i);
        (a[i], a[n + i]) = (mode.a.re as f32, -mode.a.im as f32);
        let (re, im) = (mode.f.re as f32, mode.f.im as f32);
        let inputs = args.b.row(i).iter().zip(args.b.row(n + i));
        for ((x, y), (b_re, b_im)) in real.row(i).iter_mut().zip(imaginary.row(i)).zip(inputs) {
            (*x, *y) = (re * b_re - im * b_im, -(re * b_im + im * b_re));
        }
    }
}

pub(super) fn backward(form: Form, args: &Args<Rows<'_>>, da: &[f32], db: Rows<'_>, grads: Grads<RowsMut<'_>>) {
    let n = args.params[0].len();
    let (mut real, mut imaginary) = grads.db.split_rows(n);
    let mut params = grads.params;
    for i in 0..n {
        let mode = of(form, args, i);
        let (re, im) = (mode.f.re as f32, mode.f.im as f32);
        let (mut df_re, mut df_im) = (0.0_f64, 0.0_f64);
        let inputs = args.b.row(i).iter().zip(args.b.row(n + i)).zip(db.row(i).iter().zip(db.row(n + i)));
        for ((x, y), ((b_re, b_im), (d_re, d_im))) in real.row(i).iter_mut().zip(imaginary.row(i)).zip(inputs) {
            // The gradient of f B is (d_re, -d_im).
            *x += d_re * re - d_im * im;
            *y -= d_im * re + d_re * im;
            df_re += f64::from(d_re * b_re - d_im * b_im);
            df_im -= f64::from(d_im * b_re + d_re * b_im);
        }
        let (da, df) = (Complex::new(da[i].into(), -f64::from(da[n + i])), Complex::new(df_re, df_im));
        for (k, d) in params.iter_mut().enumerate() {
            d[i] += (da.dot(mode.da[k]) + df.dot(mode.df[k])) as f32;
        }
    }
}

fn of(form: Form, args: &Args<Rows<'_>>, i: usize) -> Mode<f64> {
    mode(form, args.params.map(|x| f64::from(x[i])))
}
