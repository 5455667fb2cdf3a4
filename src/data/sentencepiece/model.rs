//! Reads SentencePiece's `tokenizer.model`, a protocol buffer: `ModelProto` of sentencepiece_model.proto. Of it are read the pieces
//! (field 1: text 1, score 2, kind 3), the trainer's settings (field 2) and the normalizer's (field 3).

/// The value of one field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => 0,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The fields of a message with their numbers, in order; None where the bytes are no message.
fn message(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(taken)
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => Field::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

/// A piece of ordinary text.
const NORMAL: u64 = 1;
/// The kinds of a piece that are not of the text.
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;

pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: u64,
}

impl Piece {
    /// True for a piece that merges make, or that the unigram model finds.
    pub(super) fn is_normal(&self) -> bool {
        self.kind == NORMAL
    }
}

/// How a model cuts a text into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unigram,
    Bpe,
    /// Words or characters.
    Other,
}

/// The parts of a model that a tokenizer needs.
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    pub kind: Kind,
    pub byte_fallback: bool,
    pub unknown: usize,
    pub begin: Option<usize>,
    pub end: Option<usize>,
    /// True if the space of a word stands behind it.
    pub space_behind: bool,
    pub normalizer: Normalizer,
}

/// What becomes of a text before it is cut.
pub(super) struct Normalizer {
    /// Compiled rules that bring it into another form of unicode; empty where there are none.
    pub charsmap: Vec<u8>,
    /// True if a space is put before the text.
    pub adds_space: bool,
    /// True if spaces at both ends go, and spaces in a row become one.
    pub removes_spaces: bool,
    /// True if spaces become [`super::SPACE`].
    pub escapes_spaces: bool,
}

impl Model {
    /// The model in `bytes`; None where they are none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            kind: Kind::Unigram,
            byte_fallback: false,
            unknown: 0,
            begin: Some(1),
            end: Some(2),
            space_behind: false,
            normalizer: Normalizer {
                charsmap: Vec::new(),
                adds_space: true,
                removes_spaces: true,
                escapes_spaces: true,
            },
        };
        for (number, field) in message(bytes)? {
            let Field::Bytes(bytes) = field else { continue };
            match number {
                1 => model.pieces.push(piece(bytes)?),
                2 => model.read_trainer(bytes)?,
                3 => model.normalizer.read(bytes)?,
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Option<()> {
        // A negative id, which takes ten bytes, says that there is no such piece.
        let id = |field: &Field<'_>| usize::try_from(field.number()).ok().filter(|id| *id < 1 << 31);
        for (number, field) in message(bytes)? {
            match number {
                3 => {
                    self.kind = match field.number() {
                        1 => Kind::Unigram,
                        2 => Kind::Bpe,
                        _ => Kind::Other,
                    }
                }
                24 => self.space_behind = field.number() != 0,
                35 => self.byte_fallback = field.number() != 0,
                40 => self.unknown = id(&field)?,
                41 => self.begin = id(&field),
                42 => self.end = id(&field),
                _ => {}
            }
        }
        Some(())
    }

    /// The text of a piece.
    pub(super) fn text(&self, id: Option<usize>) -> Option<&str> {
        self.pieces.get(id?).map(|piece| piece.text.as_str())
    }
}

impl Normalizer {
    fn read(&mut self, bytes: &[u8]) -> Option<()> {
        for (number, field) in message(bytes)? {
            match (number, field) {
                (2, Field::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, field) => self.adds_space = field.number() != 0,
                (4, field) => self.removes_spaces = field.number() != 0,
                (5, field) => self.escapes_spaces = field.number() != 0,
                _ => {}
            }
        }
        Some(())
    }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    for (number, field) in message(bytes)? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Bytes(&[a, b, c, d])) => piece.score = f32::from_le_bytes([a, b, c, d]),
            (3, field) => piece.kind = field.number(),
            _ => {}
        }
    }
    Some(piece)
}
