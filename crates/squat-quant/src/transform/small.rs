//! Symmetric Hadamard matrices whose order is no power of two.
//!
//! | order | construction |
//! |--:|---|
//! | 12, 20, 28 | Paley's second, over the fields of q = 5, 9 and 13 elements: `[[C + I, C - I], [C - I, -C - I]]` with the conference matrix `C = [[0, 1], [1, Q]]` of order q + 1, `Q[i][j]` being 1 where i - j is a square, else -1, and 0 on the diagonal |
//! | 36 | from the Latin square of addition modulo 6: -1 where two places (row, column) differ and share the row, the column or the symbol, else 1 |
//!
//! Products are computed by sums over squares, or over lines of the Latin square, with far fewer additions than the matrix has
//! entries.

/// Order of the largest small matrix.
pub(super) const MAX_SMALL: usize = 36;

/// Values of `N` places side by side; each operation is rounded once.
type Values<const N: usize> = [f32; N];

/// `a + b`.
#[inline(always)]
fn add<const N: usize>(mut a: Values<N>, b: Values<N>) -> Values<N> {
    for i in 0..N {
        a[i] += b[i];
    }
    a
}

/// `a - b`.
#[inline(always)]
fn sub<const N: usize>(mut a: Values<N>, b: Values<N>) -> Values<N> {
    for i in 0..N {
        a[i] -= b[i];
    }
    a
}

/// `6 a`.
#[inline(always)]
fn six<const N: usize>(mut a: Values<N>) -> Values<N> {
    for x in &mut a {
        *x *= 6.0;
    }
    a
}

/// Multiplies 12, 20, 28 or 36 values by the small matrix of that order, which is not normalised, in place. The order of
/// operations is that of the code.
///
/// # Panics
/// When there is no matrix of that order.
#[inline(always)]
pub(super) fn small<const N: usize>(x: &mut [Values<N>]) {
    match x.len() {
        12 => paley::<5, N>(x),
        20 => paley::<9, N>(x),
        28 => paley::<13, N>(x),
        36 => latin(x),
        order => panic!("no small Hadamard matrix of order {order}"),
    }
}

/// For each element of the field of `Q` elements, the elements at a distance that is a square, in the first `(Q - 1) / 2`
/// entries. Q is a prime, or 9: pairs modulo 3 with the product of complex numbers, where a square is what has norm 1.
const fn neighbours<const Q: usize>() -> [[u8; Q]; Q] {
    let mut table = [[0; Q]; Q];
    let mut i = 0;
    while i < Q {
        let (mut j, mut count) = (0, 0);
        while j < Q {
            let is_square = if Q == 9 {
                let (re, im) = ((i % 3 + 3 - j % 3) % 3, (i / 3 + 3 - j / 3) % 3);
                (re * re + im * im) % 3 == 1
            } else {
                let (distance, mut x, mut found) = ((i + Q - j) % Q, 1, false);
                while x < Q {
                    found |= x * x % Q == distance;
                    x += 1;
                }
                found
            };
            if is_square {
                table[i][count] = j as u8;
                count += 1;
            }
            j += 1;
        }
        i += 1;
    }
    table
}

/// Product with the conference matrix: `first` and `rest` are replaced.
///
/// `Q x = 2 (sum over squares) + x - (sum of all)`.
#[inline(always)]
fn conference<const Q: usize, const N: usize>(first: &mut Values<N>, rest: &mut [Values<N>; Q]) {
    let neighbours = const { neighbours::<Q>() };
    let x = *rest;
    let mut total = x[0];
    for i in 1..Q {
        total = add(total, x[i]);
    }
    let base = sub(*first, total);
    *first = total;
    for i in 0..Q {
        let mut sum = x[usize::from(neighbours[i][0])];
        for k in 1..(Q - 1) / 2 {
            sum = add(sum, x[usize::from(neighbours[i][k])]);
        }
        rest[i] = add(add(base, x[i]), add(sum, sum));
    }
}

/// Paley's second matrix, of order `2 (Q + 1)`: with the halves `u` and `v` of `x`,
/// `(C (u + v) + (u - v), C (u - v) - (u + v))`.
#[inline(always)]
fn paley<const Q: usize, const N: usize>(x: &mut [Values<N>]) {
    let (low, high) = x.split_at_mut(Q + 1);
    let (mut first_sum, mut first_difference) = (add(low[0], high[0]), sub(low[0], high[0]));
    let (mut sums, mut differences) = ([low[0]; Q], [low[0]; Q]);
    for i in 0..Q {
        sums[i] = add(low[i + 1], high[i + 1]);
        differences[i] = sub(low[i + 1], high[i + 1]);
    }
    (low[0], high[0]) = (first_difference, first_sum);
    low[1..].copy_from_slice(&differences);
    high[1..].copy_from_slice(&sums);
    conference(&mut first_sum, &mut sums);
    conference(&mut first_difference, &mut differences);
    (low[0], high[0]) = (add(first_sum, low[0]), sub(first_difference, high[0]));
    for i in 0..Q {
        low[i + 1] = add(sums[i], low[i + 1]);
        high[i + 1] = sub(differences[i], high[i + 1]);
    }
}

/// The matrix of order 36: `6 x + (sum of all) - 2 (sums of the row, the column and the symbol of a place)`.
#[inline(always)]
fn latin<const N: usize>(x: &mut [Values<N>]) {
    let mut rows = [x[0]; 6];
    let mut columns = [x[0]; 6];
    let mut symbols = [x[0]; 6];
    for k in 0..6 {
        let (mut row, mut column, mut symbol) = (x[6 * k], x[k], x[k]);
        for i in 1..6 {
            row = add(row, x[6 * k + i]);
            column = add(column, x[6 * i + k]);
            symbol = add(symbol, x[6 * i + (k + 6 - i) % 6]);
        }
        (rows[k], columns[k], symbols[k]) = (row, add(column, column), add(symbol, symbol));
    }
    let mut total = rows[0];
    for k in 1..6 {
        total = add(total, rows[k]);
    }
    for r in 0..6 {
        let row = sub(total, add(rows[r], rows[r]));
        for c in 0..6 {
            let value = add(six(x[6 * r + c]), row);
            x[6 * r + c] = sub(sub(value, columns[c]), symbols[(r + c) % 6]);
        }
    }
}
