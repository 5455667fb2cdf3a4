//! A short hash that tells contents apart.

/// The hash FNV-1a of 64 bits (Fowler, Noll and Vo): equal on every machine and in every version. It tells changed files apart, and is
/// no defense against someone who wants it fooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// The fingerprint of `bytes` alone.
    pub fn of(bytes: &[u8]) -> Self {
        let mut fingerprint = Self::default();
        fingerprint.add(bytes);
        fingerprint
    }

    /// Goes on over `bytes`; pieces give the fingerprint of the whole.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }

    /// The hash.
    pub fn number(self) -> u64 {
        self.0
    }

    /// 16 hexadecimal digits.
    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_published_hash_of_the_whole() {
        let mut pieces = Fingerprint::default();
        pieces.add(b"foo");
        pieces.add(b"bar");
        assert_eq!((pieces, pieces.text()), (Fingerprint::of(b"foobar"), "85944171f73967e8".to_owned()));
    }
}
