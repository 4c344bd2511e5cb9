//! The tape itself.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::{Tape, Var};
use elapid::ops::{ScanArgs, Targets, add_norm, cross_entropy, linear, linear_recomputed, neg_exp, selective_scan};
use elapid::params::{ParamGrads, ParamId};
use elapid::{DType, Device, LanguageModel, Result, Tensor};
use elapid_kernels::selective_scan::Discretisation;
use elapid_kernels::testing::bits;

use crate::{close, ids, small_model};

fn counted(shape: &[usize], scale: f32) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new((0..count).map(|i| ((i * 37 % 23) as f32 - 11.0) * scale).collect(), shape)
}

/// d⟨f(x), g⟩/dx by central differences.
fn differences(x: &Tensor, g: &Tensor, f: impl Fn(&Var) -> Var) -> Vec<f32> {
    let step = 1e-2;
    (0..x.len())
        .map(|i| {
            let at = |delta: f32| {
                let mut moved = x.clone();
                moved.make_mut()[i] += delta;
                let y = f(&moved.into()).value().contiguous();
                y.as_slice().iter().zip(g.as_slice()).map(|(y, g)| f64::from(y * g)).sum::<f64>()
            };
            ((at(step) - at(-step)) / f64::from(2.0 * step)) as f32
        })
        .collect()
}

/// A function that uses its input twice, in column slices and whole.
fn tangled(x: &Var) -> Var {
    let weight: Var = counted(&[3, 2], 0.1).into();
    let left = linear(&x.columns(0, 2), &weight, None).unwrap();
    let right = linear(&x.columns(2, 2), &weight, None).unwrap();
    let (_, sum) = add_norm(&left, Some(&right), &Tensor::new(vec![1.0; 3], &[3]).into(), 1e-5).unwrap();
    let back: Var = counted(&[4, 3], 0.2).into();
    let (normed, _) =
        add_norm(&linear(&sum, &back, None).unwrap(), Some(x), &Tensor::new(vec![0.5; 4], &[4]).into(), 1e-5).unwrap();
    normed
}

#[test]
fn slices_and_repeated_uses_share_a_gradient() {
    let (x, g) = (counted(&[3, 4], 0.15), counted(&[3, 4], 0.07));
    let tape = Tape::new();
    let leaf = tape.leaf(x.clone());
    let y = tangled(&leaf);
    let mut grads = tape.backward_from(&[(&y, g.clone())], &mut ParamGrads::default()).unwrap();
    let got = grads.take(&leaf).unwrap().unwrap();
    let want = differences(&x, &g, tangled);
    let worst = want.iter().zip(got.as_slice()).map(|(w, g)| (w - g).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3, "{worst}: {want:?} {got:?}");
}

#[test]
fn the_same_variable_twice() {
    let tape = Tape::new();
    let leaf = tape.leaf(counted(&[2, 3], 0.3));
    let (_, sum) = add_norm(&leaf, Some(&leaf), &Tensor::new(vec![1.0; 3], &[3]).into(), 1e-5).unwrap();
    let ones = Tensor::new(vec![1.0; 6], &[2, 3]);
    let mut grads = tape.backward_from(&[(&sum, ones)], &mut ParamGrads::default()).unwrap();
    close("d(x + x)", &[2.0; 6], grads.take(&leaf).unwrap().unwrap().as_slice());
}

#[test]
fn unused_columns_have_gradient_zero() {
    let tape = Tape::new();
    let leaf = tape.leaf(counted(&[2, 5], 0.3));
    let y = linear(&leaf.columns(1, 2), &Tensor::new(vec![1.0, 1.0], &[1, 2]).into(), None).unwrap();
    let ones = Tensor::new(vec![1.0; 2], &[2, 1]);
    let mut grads = tape.backward_from(&[(&y, ones)], &mut ParamGrads::default()).unwrap();
    assert_eq!(grads.take(&leaf).unwrap().unwrap().as_slice(), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
}

/// Products of all of x and of two of its columns: the second to go back adds to what is there of x's gradient, which may
/// be a part.
pub(crate) fn products_add_to_what_is_there(device: Device) {
    let on = |x: Tensor| x.to(device, DType::F32).unwrap();
    let (whole, part) = (counted(&[2, 4], 0.1), counted(&[2, 2], 0.3));
    // The gradient of each is the sum of the rows of its matrix.
    let rows = |w: &Tensor, j: usize| w.as_slice()[j] + w.as_slice()[w.cols() + j];
    let want: Vec<f32> = (0..12)
        .map(|i| rows(&whole, i % 4) + if (1..3).contains(&(i % 4)) { rows(&part, i % 4 - 1) } else { 0.0 })
        .collect();
    let (whole, part): (Var, Var) = (on(whole).into(), on(part).into());
    for whole_last in [true, false] {
        let tape = Tape::new();
        let leaf = tape.leaf(on(counted(&[3, 4], 0.15)));
        let mut products = [(leaf.clone(), &whole), (leaf.columns(1, 2), &part)];
        if whole_last {
            products.reverse();
        }
        let products = products.map(|(x, weight)| linear(&x, weight, None).unwrap());
        let seeds = products.each_ref().map(|y| (y, on(Tensor::new(vec![1.0; 6], &[3, 2]))));
        let mut grads = tape.backward_from(&seeds, &mut ParamGrads::default()).unwrap();
        close("dx", &want, &grads.take(&leaf).unwrap().unwrap().to_vec().unwrap());
    }
}

#[test]
fn a_product_adds_to_a_gradient_that_is_there_in_part() {
    products_add_to_what_is_there(Device::Cpu);
}

/// Whether no other tensor shares these numbers.
fn is_alone(mut x: Tensor) -> bool {
    if x.gpu().is_some() {
        return Arc::strong_count(x.buffer().0) == 1;
    }
    // Then they are written where they are.
    let before = x.as_slice().as_ptr();
    x.make_mut().as_ptr() == before
}

/// Bits of the gradients of leaves, and whether the tape kept what may be computed again.
type Run = (Vec<Vec<u32>>, bool);

fn gradients(tape: &Tape, leaves: &[Var], outputs: &[(&Var, Tensor)]) -> Vec<Vec<u32>> {
    let mut grads = tape.backward_from(outputs, &mut ParamGrads::default()).unwrap();
    leaves.iter().map(|leaf| bits(&grads.take(leaf).unwrap().unwrap().to_vec().unwrap())).collect()
}

/// A scan by its input and by what Δ is made of.
fn scan_with_delta(device: Device, dtype: DType, product: fn(&Var, &Var, Option<&Var>) -> Result<Var>) -> Run {
    let (l, d, n, r) = (90, 64, 16, 8);
    let on = |x: Tensor, dtype| x.to(device, dtype).unwrap();
    let tape = Tape::new();
    let leaves = [([1, l, d], 0.1), ([1, l, r], 0.2), ([1, d, r], 0.05), ([1, l, n], 0.1)]
        .map(|(shape, scale)| tape.leaf(on(counted(&shape, scale), dtype)));
    let [u, dt, weight, b] = &leaves;
    let delta = product(dt, &weight.reshape(&[d, r]), None).unwrap();
    let numbers = delta.value().clone();
    let args = ScanArgs {
        u: u.clone(),
        delta,
        delta_bias: None,
        a: tape.leaf(on(Tensor::new(vec![-0.5; d * n], &[d, n]), DType::F32)),
        b: b.clone(),
        c: b.clone(),
        skip: None,
        z: None,
        initial: on(Tensor::zeros(&[1, d, n]).unwrap(), DType::F32).into(),
        rule: Discretisation::ExpEuler,
        in_place: false,
    };
    let (y, _) = selective_scan(args, &Layout::new(1, l)).unwrap();
    let kept = !is_alone(numbers);
    (gradients(&tape, &leaves, &[(&y, on(counted(&[1, l, d], 0.3), dtype))]), kept)
}

/// A norm and a product of it.
fn normed_product(device: Device, dtype: DType, kept: bool) -> Run {
    let on = |x: Tensor, dtype| x.to(device, dtype).unwrap();
    let tape = Tape::new();
    let leaves = [
        tape.leaf(on(counted(&[90, 64], 0.1), dtype)),
        tape.leaf(on(counted(&[90, 64], 0.3), DType::F32)),
        tape.leaf(on(counted(&[64], 0.2), DType::F32)),
        tape.leaf(on(counted(&[8, 64], 0.05), dtype)),
    ];
    let [x, residual, norm, weight] = &leaves;
    let (mut y, sum) = add_norm(x, Some(residual), norm, 1e-5).unwrap();
    let numbers = y.value().clone();
    if kept {
        // A variable under another shape is kept.
        y = y.reshape(&[90, 64]);
    }
    let z = linear(&y, weight, None).unwrap();
    drop(y);
    let kept = !is_alone(numbers);
    let seeds = [(&z, on(counted(&[90, 8], 0.3), dtype)), (&sum, on(counted(&[90, 64], 0.1), DType::F32))];
    (gradients(&tape, &leaves, &seeds), kept)
}

/// Δ and normed inputs: whether they are computed again shows in what is kept, and in no bit.
pub(crate) fn computed_again_is_not_kept_and_changes_no_bit(device: Device, dtype: DType) {
    for (want, got) in [
        (scan_with_delta(device, dtype, linear), scan_with_delta(device, dtype, linear_recomputed)),
        (normed_product(device, dtype, true), normed_product(device, dtype, false)),
    ] {
        assert!(want.1 && !got.1);
        assert!(want.0 == got.0);
    }
}

#[test]
fn what_is_computed_again_is_not_kept_and_changes_no_bit() {
    computed_again_is_not_kept_and_changes_no_bit(Device::Cpu, DType::F32);
}

#[test]
fn what_nothing_depends_on_is_not_run() {
    let tape = Arc::new(Tape::new());
    let leaf = tape.leaf(counted(&[1, 2], 0.3));
    let _unused = neg_exp(&leaf).unwrap();
    let y = neg_exp(&leaf).unwrap();
    let seed = Tensor::new(vec![1.0, 1.0], &[1, 2]);
    let mut grads = tape.backward_from(&[(&y, seed)], &mut ParamGrads::default()).unwrap();
    close("d -exp", y.value().as_slice(), grads.take(&leaf).unwrap().unwrap().as_slice());
}

#[test]
fn smoothed_targets_ask_for_every_token() {
    let (h, w): (Var, Var) = (counted(&[2, 3], 1.0).into(), counted(&[5, 3], 0.5).into());
    let loss = |targets: Targets<'_>| cross_entropy(&h, &w, targets, 0.0).unwrap().value().unwrap();
    let all = (0..5).map(|id| loss((&[id, -1]).into())).sum::<f32>() / 5.0;
    let want = 0.9 * loss((&[2, -1]).into()) + 0.1 * all;
    close("smoothed", &[want], &[loss(Targets::from(&[2, -1]).smoothed(0.1))]);
    assert!(cross_entropy(&h, &w, Targets::from(&[2, -1]).smoothed(1.0), 0.0).is_err());
}

#[test]
fn constants_record_nothing() {
    let x: Var = counted(&[2, 2], 1.0).into();
    assert!(!linear(&x, &x, None).unwrap().wants_grad());
    let tape = Tape::new();
    assert!(!tape.leaf(counted(&[1], 1.0)).detach().wants_grad());
}

/// Names of parameters in the order that their gradients are complete.
fn finals(model: &LanguageModel, checkpointed: bool) -> (Vec<String>, ParamGrads) {
    let tape = Arc::new(Tape::new());
    let mut grads = ParamGrads::of(model.params()).unwrap();
    let (tokens, targets) = (ids(2 * 9, 37), ids(2 * 9, 37).iter().map(|&id| id as i32).collect::<Vec<_>>());
    let (cx, state) = (model.training(&tape, Layout::new(2, 9)), model.zero_state(2).unwrap());
    let (loss, _) = model.loss(&cx, &tokens, &targets, &state, checkpointed).unwrap();
    let mut names = Vec::new();
    let mut is_final = |id| {
        names.push(model.params().get(id).name.clone());
        Ok(())
    };
    tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut is_final).unwrap();
    (names, grads)
}

#[test]
fn every_gradient_is_final_once_and_late_layers_come_first() {
    let tied = small_model(Discretisation::ExpEuler);
    let mut config = tied.config().clone();
    config.stack.model.tie_embeddings = false;
    let untied = LanguageModel::new(config, 7).unwrap();
    for (model, checkpointed) in [(&tied, false), (&tied, true), (&untied, false), (&untied, true)] {
        let (names, grads) = finals(model, checkpointed);
        let mut sorted = names.clone();
        sorted.sort();
        let mut all: Vec<String> = model.params().iter().map(|(_, param)| param.name.clone()).collect();
        all.sort();
        assert_eq!(sorted, all, "checkpointed {checkpointed}: each once");
        assert_eq!(grads.iter().count(), all.len());
        // The head and the last norm, layers from the last to the first, the embedding.
        let layer = |name: &String| match name.strip_prefix("backbone.layers.") {
            Some(rest) => rest.split('.').next().unwrap().parse::<i32>().unwrap(),
            None if name == "backbone.embeddings.weight" => -1,
            None => 3,
        };
        let order: Vec<i32> = names.iter().map(layer).collect();
        assert!(order.is_sorted_by(|a, b| a >= b), "checkpointed {checkpointed}: {names:?}");
        assert_eq!(names.last().unwrap(), "backbone.embeddings.weight");
    }
}

#[test]
fn what_is_asked_for_and_not_used_is_final_too() {
    let model = small_model(Discretisation::ExpEuler);
    let tape = Arc::new(Tape::new());
    let cx = model.training(&tape, Layout::new(1, 1));
    let ids: Vec<ParamId> = model.params().iter().map(|(id, _)| id).collect();
    let (_unused, norm) = (cx.param(ids[0]), cx.param(ids[1]));
    let (y, _) = add_norm(&norm.reshape(&[1, 20]), Some(&norm.reshape(&[1, 20])), &norm, 1e-5).unwrap();
    let mut order = Vec::new();
    let mut is_final = |id| {
        order.push(id);
        Ok(())
    };
    tape.backward(&[(&y, 1.0)], &mut ParamGrads::default(), &mut is_final).unwrap();
    assert_eq!(order, [ids[1], ids[0]]);
    let refuses = &mut |_| Err(elapid::Error::Argument("no".into()));
    let (y, _) = add_norm(&cx.param(ids[1]), None, &cx.param(ids[1]), 1e-5).unwrap();
    assert!(tape.backward(&[(&y, 1.0)], &mut ParamGrads::default(), refuses).is_err());
}

/// On a GPU a gradient is in its place when it is said to be final, and stays as it is.
#[test]
fn final_gradients_do_not_change() {
    let Some(gpu) = elapid_kernels::testing::gpu() else { return };
    let model = small_model(Discretisation::ExpEuler).to_train(Device::Cuda(gpu), DType::F32).unwrap();
    for checkpointed in [false, true] {
        let tape = Arc::new(Tape::new());
        let mut grads = ParamGrads::of(model.params()).unwrap();
        let flat = grads.flat().unwrap().clone();
        let offsets = &model.params().flat().unwrap().offsets;
        let read = |id: ParamId| {
            let index = model.params().iter().position(|(other, _)| other == id).unwrap();
            gpu.download::<f32>(&flat, offsets[index], model.params().get(id).value.len()).unwrap()
        };
        let (tokens, targets) = (ids(2 * 9, 37), ids(2 * 9, 37).iter().map(|&id| id as i32).collect::<Vec<_>>());
        let (cx, state) = (model.training(&tape, Layout::new(2, 9)), model.zero_state(2).unwrap());
        let (loss, _) = model.loss(&cx, &tokens, &targets, &state, checkpointed).unwrap();
        let mut seen = Vec::new();
        let mut is_final = |id| {
            seen.push((id, read(id)));
            Ok(())
        };
        tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut is_final).unwrap();
        assert_eq!(seen.len(), model.params().iter().len());
        for (id, then) in seen {
            assert!(then == read(id), "checkpointed {checkpointed}: {}", model.params().get(id).name);
            assert!(then.iter().any(|&x| x != 0.0), "{}", model.params().get(id).name);
        }
    }
}

#[test]
fn losses_are_added_by_their_weights() {
    let model = small_model(Discretisation::ExpEuler);
    let id = model.params().find("backbone.norm_f.weight").unwrap();
    let targets = [1, 3, -1, 2];
    // Two losses of one parameter, alone and together.
    let gradient = |weights: &[f32]| {
        let tape = Arc::new(Tape::new());
        let cx = model.training(&tape, Layout::new(1, 4));
        let state = model.zero_state(1).unwrap();
        let (loss, _) = model.loss(&cx, &[5, 6, 7, 8], &targets, &state, false).unwrap();
        let (side, _) = add_norm(&cx.param(id).reshape(&[1, 20]), None, &cx.param(id), 1e-5).unwrap();
        cx.side_loss(side, weights[1]);
        let sides = cx.take_side_losses().unwrap();
        assert!(sides.len() == 1 && cx.take_side_losses().unwrap().is_empty());
        let losses: Vec<(&Var, f32)> =
            [(&loss.mean, weights[0])].into_iter().chain(sides.iter().map(|(side, w)| (side, *w))).collect();
        let mut grads = ParamGrads::default();
        tape.backward(&losses, &mut grads, &mut |_| Ok(())).unwrap();
        grads.get(id).unwrap().to_vec().unwrap()
    };
    let (both, one, other) = (gradient(&[0.5, 2.0]), gradient(&[1.0, 0.0]), gradient(&[0.0, 1.0]));
    assert!(one.iter().any(|g| *g != 0.0) && other.iter().any(|g| *g != 0.0));
    for ((both, one), other) in both.iter().zip(one).zip(other) {
        let want = 0.5 * one + 2.0 * other;
        assert!((both - want).abs() < 1e-5 * (1.0 + want.abs()), "{both} {want}");
    }
}
