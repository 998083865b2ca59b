//! Differences between two forms.

mod common;

use common::Uniform;
use squat_eval::parity::{compare_log_likelihoods, compare_models, compare_pairs};
use squat_eval::tasks::PairScore;

#[test]
fn differences_are_measured_token_by_token() {
    let a = vec![vec![-1.0, -2.0], vec![-3.0]];
    let same = compare_log_likelihoods(&a, &a).expect("same shape");
    assert_eq!((same.n, same.n_sequences, same.max_abs, same.worst), (3, 2, 0.0, Some((0, 0))));
    let b = vec![vec![-1.0, -2.5], vec![-2.0]];
    let other = compare_log_likelihoods(&a, &b).expect("same shape");
    assert_eq!((other.max_abs, other.mean_abs, other.worst), (1.0, 0.5, Some((1, 0))));
    assert!((other.mean - 0.5 / 3.0).abs() < 1e-12);
    assert!((other.root_mean_square - (1.25_f64 / 3.0).sqrt()).abs() < 1e-12);

    assert!(compare_log_likelihoods(&a, &b[..1]).is_err());
    assert!(compare_log_likelihoods(&a, &[vec![-1.0], vec![-2.0]]).is_err());
    let error =
        compare_log_likelihoods(&a, &[vec![-1.0, f32::NAN], vec![-2.0]]).expect_err("NaN").to_string();
    assert!(error.contains("value 1 of sequence 0"), "{error}");
    assert_eq!(compare_log_likelihoods(&[], &[]).expect("nothing").n, 0);

    let apart = compare_models(&mut Uniform::new(8), &mut Uniform::new(16), &[&[0, 1, 2]]).expect("run");
    assert!((apart.max_abs - std::f64::consts::LN_2).abs() < 1e-6);
}

#[test]
fn agreement_pair_by_pair() {
    let score = |good, bad| PairScore { good, bad };
    let a = [score(1.0, 0.0), score(1.0, 0.0), score(0.0, 1.0), score(0.5, 0.5)];
    let b = [score(1.0, 0.0), score(0.0, 1.0), score(0.0, 1.0), score(1.0, 0.5)];
    let agreement = compare_pairs(&a, &b).expect("as many");
    assert_eq!((agreement.n, agreement.same, agreement.change), (4, 2, -12.5));
    // Changes 0, -1, 0, 1/2 have the sample variance 1.1875 / 3.
    assert!((agreement.standard_error - 100.0 * (1.1875_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-9);
    assert!(compare_pairs(&a, &b[1..]).is_err());
}
