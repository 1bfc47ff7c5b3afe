//! Lists whose length is checked before room is made for them.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};

/// The most items of a list in a request: as many as the longest page of hashes has.
pub const ITEMS_MAX: usize = 4096;

/// A list in a request, of [`ITEMS_MAX`] items at most: a longer one is no message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Items<T>(pub Vec<T>);

impl<T> From<Vec<T>> for Items<T> {
    fn from(items: Vec<T>) -> Self {
        Self(items)
    }
}

impl<T> FromIterator<T> for Items<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(Vec::from_iter(items))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(UpToMax(PhantomData)).map(Self)
    }
}

struct UpToMax<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UpToMax<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {ITEMS_MAX} items at most")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == ITEMS_MAX {
                return Err(A::Error::invalid_length(ITEMS_MAX + 1, &self));
            }
            list.push(item);
        }
        Ok(list)
    }
}
