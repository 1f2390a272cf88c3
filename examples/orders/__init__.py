"""A shop on hiveio: orders, payments and stock as three services, and a fulfilment that leads an order through them."""
