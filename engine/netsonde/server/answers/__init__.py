"""What the operator API answers, as types: its document and its tests are made of them."""
