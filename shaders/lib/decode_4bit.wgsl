// The value of the code in the lowest four bits: a tree of selects, since a table that is indexed at run time leaves the registers.
// One code at a time, since four trees side by side leave them too.
fn decode(code: u32) -> f32 {
    let b0 = (code & 1u) != 0u;
    let b1 = (code & 2u) != 0u;
    let b2 = (code & 4u) != 0u;
    let b3 = (code & 8u) != 0u;
    let c0 = select(CODE_0, CODE_1, b0);
    let c1 = select(CODE_2, CODE_3, b0);
    let c2 = select(CODE_4, CODE_5, b0);
    let c3 = select(CODE_6, CODE_7, b0);
    let c4 = select(CODE_8, CODE_9, b0);
    let c5 = select(CODE_10, CODE_11, b0);
    let c6 = select(CODE_12, CODE_13, b0);
    let c7 = select(CODE_14, CODE_15, b0);
    let low = select(select(c0, c1, b1), select(c2, c3, b1), b2);
    let high = select(select(c4, c5, b1), select(c6, c7, b1), b2);
    return select(low, high, b3);
}
