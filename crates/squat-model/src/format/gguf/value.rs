//! Metadata of a GGUF file, and the cursor that reads it without ever leaving the bytes.

/// Deepest nesting of arrays that is read.
const MAX_DEPTH: usize = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any of the unsigned types.
    Unsigned(u64),
    /// Any of the signed types.
    Signed(i64),
    /// Either of the float types.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text; invalid UTF-8 is replaced.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// A whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    /// The value in a message; long ones are cut.
    pub fn shown(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::Array(values) => format!("an array of {}", values.len()),
        }
    }
}

/// Reads little-endian values from the front of bytes. Messages say where the bytes ended.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.position..end)).ok_or_else(|| {
            format!(
                "the file is truncated or damaged: {count} bytes expected at {}, the file has {}",
                self.position,
                self.bytes.len()
            )
        })?;
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a length that must be followed by at least `bytes_each` bytes per element.
    fn length(&mut self, bytes_each: usize) -> Result<usize, String> {
        let length = self.u64()?;
        let room = (self.bytes.len() - self.position) / bytes_each;
        usize::try_from(length).ok().filter(|&length| length <= room).ok_or_else(|| {
            format!("the file is truncated or damaged: a length of {length} at {}", self.position - 8)
        })
    }

    pub(super) fn string(&mut self) -> Result<String, String> {
        let length = self.length(1)?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    /// A type number and a value of that type.
    pub(super) fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.take(1)?[0] != 0),
            8 => Value::Text(self.string()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    _ => 12,
                };
                let length = self.length(least)?;
                let mut values = Vec::with_capacity(length);
                for _ in 0..length {
                    values.push(self.value_of(kind, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            kind => return Err(format!("unknown type {kind} at {}", self.position)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type() {
        let read = |kind: u32, bytes: &[u8]| {
            let all = [&kind.to_le_bytes()[..], bytes].concat();
            let mut cursor = Cursor::new(&all);
            let value = cursor.value()?;
            assert_eq!(cursor.position(), all.len());
            Ok::<_, String>(value)
        };
        assert_eq!(read(0, &[200]).unwrap().as_u64(), Some(200));
        assert_eq!(read(1, &[200]).unwrap(), Value::Signed(-56));
        assert_eq!(read(5, &7i32.to_le_bytes()).unwrap().as_u64(), Some(7));
        assert_eq!(read(6, &1.5f32.to_le_bytes()).unwrap().as_f64(), Some(1.5));
        assert_eq!(read(7, &[1]).unwrap().as_bool(), Some(true));
        let text = [&3u64.to_le_bytes()[..], b"abc"].concat();
        assert_eq!(read(8, &text).unwrap().as_str(), Some("abc"));
        let array = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &text, &text].concat();
        assert_eq!(read(9, &array).unwrap().as_array().unwrap().len(), 2);
        // Impossible lengths must not allocate memory.
        let huge = [&0u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        assert!(read(9, &huge).unwrap_err().contains("length"));
        assert!(read(13, &[]).unwrap_err().contains("unknown type 13"));
        assert!(read(10, &[1, 2]).unwrap_err().contains("truncated"));
        let mut nested = Vec::new();
        for _ in 0..50 {
            nested.extend(9u32.to_le_bytes());
            nested.extend(1u64.to_le_bytes());
        }
        assert!(read(9, &nested).is_err());
    }
}
