//! The order in which the gradients of micro-batches are added: a binary tree over their indices.
//!
//! The sum over `count` micro-batches is the sum over the first half (the larger one, if they differ) plus the sum over
//! the second half, and so on down to single micro-batches. The tree depends on `count` alone. A process that has some
//! consecutive micro-batches adds up the subtrees that it holds entirely; the process that receives those of all others
//! continues where they stopped. So the result has the same bits for every number of threads and processes.

use std::ops::Range;

/// Gradients by parameter.
pub type Gradients = Vec<Vec<f32>>;

/// Adds values of consecutive micro-batches in the order of the tree.
pub struct Sums<T> {
    count: usize,
    add: fn(&mut T, &T),
    held: Vec<(Range<usize>, T)>,
}

impl<T> Sums<T> {
    /// For `count` micro-batches, with the addition of two values.
    pub fn new(count: usize, add: fn(&mut T, &T)) -> Self {
        Self { count, add, held: Vec::new() }
    }

    /// Takes the value of the node `range`; nodes come from left to right.
    pub fn push(&mut self, range: Range<usize>, value: T) {
        self.held.push((range, value));
        while let [.., (left, _), (right, _)] = self.held.as_slice()
            && siblings(self.count, left, right)
            && let Some((right, addend)) = self.held.pop()
            && let Some((left, sum)) = self.held.last_mut()
        {
            (self.add)(sum, &addend);
            left.end = right.end;
        }
    }

    /// The subtrees held, from left to right; one of them when every micro-batch has come.
    pub fn into_nodes(self) -> Vec<(Range<usize>, T)> {
        self.held
    }
}

/// Whether two nodes are the halves of one node.
fn siblings(count: usize, left: &Range<usize>, right: &Range<usize>) -> bool {
    let (mut start, mut end) = (0, count);
    while end - start > 1 {
        let middle = start + (end - start).div_ceil(2);
        if *left == (start..middle) && *right == (middle..end) {
            return true;
        }
        if right.end <= middle {
            end = middle;
        } else if left.start >= middle {
            start = middle;
        } else {
            return false;
        }
    }
    false
}

/// The subtrees that a process with these micro-batches comes to.
pub fn nodes(count: usize, share: Range<usize>) -> Vec<Range<usize>> {
    let mut sums = Sums::new(count, |(), ()| ());
    for index in share {
        sums.push(index..index + 1, ());
    }
    sums.into_nodes().into_iter().map(|(range, ())| range).collect()
}

/// Micro-batches of process `rank` of `world`: consecutive, and as many for each as possible.
pub fn share(count: usize, rank: usize, world: usize) -> Range<usize> {
    rank * count / world..(rank + 1) * count / world
}

/// Adds slices of equal length.
pub fn add_slices(sum: &mut [f32], addend: &[f32]) {
    sum.iter_mut().zip(addend).for_each(|(s, a)| *s += a);
}

/// Adds gradients of the same parameters.
pub fn add_gradients(sum: &mut Gradients, addend: &Gradients) {
    sum.iter_mut().zip(addend).for_each(|(s, a)| add_slices(s, a));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word for word.
    fn sum(values: &[f32]) -> f32 {
        match values {
            [one] => *one,
            _ => {
                let (first, second) = values.split_at(values.len().div_ceil(2));
                sum(first) + sum(second)
            }
        }
    }

    proptest! {
        #[test]
        fn any_number_of_processes_gives_the_definition(
            values in prop::collection::vec(-1e6f32..1e6, 1..40),
            world in 1usize..12,
        ) {
            let n = values.len();
            let add: fn(&mut f32, &f32) = |a, b| *a += b;
            let mut all = Sums::new(n, add);
            for rank in 0..world {
                let share = share(n, rank, world);
                let mut own = Sums::new(n, add);
                for index in share.clone() {
                    own.push(index..index + 1, values[index]);
                }
                let found = own.into_nodes();
                prop_assert_eq!(found.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>(), nodes(n, share));
                // A power of two that divides the count needs one node for each process.
                prop_assert!(!world.is_power_of_two() || !n.is_multiple_of(world) || found.len() == 1);
                for (range, value) in found {
                    all.push(range, value);
                }
            }
            let found = all.into_nodes();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].0.clone(), 0..n);
            prop_assert_eq!(found[0].1.to_bits(), sum(&values).to_bits());
        }
    }

    #[test]
    fn the_order_is_not_a_chain() {
        // In a chain the small numbers would vanish one by one.
        let values = [1e8f32, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0];
        let chain = values.iter().fold(0.0, |a, b| a + b);
        assert_ne!(chain, sum(&values));
    }
}
