//! State is a value.

use elapid::Layout;
use elapid::lm::Positions;
use elapid::{LanguageModel, State};
use elapid_kernels::selective_scan::Discretisation;

use crate::{ids, small_model};

fn read(model: &LanguageModel, tokens: &[u32], state: &State) -> (Vec<f32>, State) {
    let b = state.rows();
    let cx = model.inference(Layout::new(b, tokens.len() / b));
    let (logits, state) = model.logits(&cx, tokens, state, Positions::Last).unwrap();
    (logits.value().as_slice().to_vec(), state)
}

#[test]
fn a_state_forks() {
    let model = small_model(Discretisation::ExpEuler);
    let (_, state) = read(&model, &ids(9, 37), &model.zero_state(1).unwrap());
    let kept = state.clone();
    let (one, _) = read(&model, &[1, 2], &state);
    let (other, _) = read(&model, &[3, 4], &state);
    assert_ne!(one, other);
    assert_eq!(one, read(&model, &[1, 2], &kept).0);
    assert_eq!(state.position(), 9);
}

#[test]
fn rows_are_selected_and_stacked() {
    let model = small_model(Discretisation::ExpEuler);
    let (_, both) = read(&model, &ids(2 * 8, 37), &model.zero_state(2).unwrap());
    let swapped = both.select(&[1, 0, 1]).unwrap();
    let again = State::stack(&[both.select(&[1]).unwrap(), both]).unwrap();
    let continued = |state: &State| read(&model, &[5, 6, 7], state).0;
    let v = 37;
    assert_eq!(continued(&swapped)[..v], continued(&again)[..v]);
    assert!(swapped.select(&[3]).unwrap_err().to_string().contains("row 3"));
    assert!(State::stack(&[]).is_err());
}

#[test]
fn a_saved_state_comes_back_and_a_foreign_one_does_not() {
    let model = small_model(Discretisation::ExpEuler);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.state");
    let (_, state) = read(&model, &ids(30, 37), &model.zero_state(1).unwrap());
    state.save(&path, model.fingerprint().unwrap(), &[("prompt", "thirty tokens".into())]).unwrap();
    let (loaded, notes) = model.load_state(&path).unwrap();
    assert_eq!(notes["prompt"], "thirty tokens");
    assert_eq!(loaded.position(), 30);
    assert_eq!(read(&model, &[5], &state).0, read(&model, &[5], &loaded).0);

    let other = LanguageModel::new(model.config().clone(), 8).unwrap();
    let refused = other.load_state(&path).unwrap_err().to_string();
    assert!(refused.contains("prompt.state") && refused.contains("another model"), "{refused}");
}

#[test]
fn damaged_states_are_refused() {
    let model = small_model(Discretisation::ExpEuler);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.state");
    model.zero_state(1).unwrap().save(&path, model.fingerprint().unwrap(), &[]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(41) {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(model.load_state(&path).is_err(), "cut at {len}");
    }
    for at in 0..whole.len().min(2000) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        let _ = model.load_state(&path); // an error or a state, never a panic
    }
    assert!(model.load_state(&dir.path().join("absent")).unwrap_err().to_string().contains("absent"));
}
