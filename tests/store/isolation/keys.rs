//! Keys and rotations from another organization.

use bulkhead_keys::{KeyError, Level};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::key::rotation::KeyWork;
use bulkhead_store::key::{TendFrom, Tended};
use bulkhead_store::page::PageRequest;
use bulkhead_store::{StoreError, Tx};

use crate::keys::{KeyRows, elsewhere, foreign_text, sealer};

impl KeyRows {
    /// With another organization's scope none of it is there.
    pub(crate) async fn is_not_there(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
        let (sealer, place) = (sealer(ambient), elsewhere(tx.org()?));
        assert!(tx.list_keys().await?.is_empty());
        let opened = tx.open_sealed(&sealer, &place, &foreign_text(place.org)).await;
        assert!(matches!(opened, Err(StoreError::Keys(KeyError::Missing(_)))), "{opened:?}");
        assert_eq!(tx.count_key_work(&sealer).await?, KeyWork::default());
        assert!(tx.load_key_rotation(self.rotation.id).await?.is_none());
        assert!(tx.list_running_key_rotations().await?.is_empty());
        assert!(tx.load_ended_key_rotation(Level::Data).await?.is_none());
        assert!(tx.list_key_rotations(PageRequest::default()).await?.items.is_empty());
        Ok(())
    }

    /// … and none of it can be changed; the same numbers and ids may exist there on their own.
    pub(crate) async fn insert_beside(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
        let (sealer, place) = (sealer(ambient), elsewhere(tx.org()?));
        tx.update_key_rotation(&self.rotation).await?;
        assert_eq!(tx.tend_keys(&sealer, TendFrom::START, 9).await?, Tended::default());
        tx.seal(&sealer, &place, b"x").await?;
        tx.replace_data_key(&sealer).await?;
        tx.replace_org_key(&sealer).await?;
        tx.blind_index(&sealer, place.table, place.column).await?;
        assert_eq!(tx.tend_keys(&sealer, TendFrom::START, 9).await?.data_keys, 2);
        assert!(tx.insert_key_rotation(&self.rotation).await?);
        Ok(())
    }
}
