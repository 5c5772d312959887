"""AMQP, and the only package that imports aiormq and pamqp. It knows nothing of retries or ledgers.

    frames       bytes: what is read from a connection and what is written to it
    properties   bytes: those of a message
    handshake    opens a connection, or says in words why a broker did not let us
    lane         what the runtime asks of a channel: deliveries, confirms, acks and publishes
    direct       the one it has: it writes and reads their frames itself
    arguments    what those of a queue can be on the wire
    topology     declares the contract's queues, on a connection of whoever asks for it
    marker       notices that a queue is worked on with two ledgers
    watch        notices that a broker has fallen silent
    connection   a connection that is opened anew when it goes, to the next broker
    copies       what of a message's properties can be written again
    publisher    publishes, and returns once the broker has stored the message
    consumer     the messages of one queue, over as many connections as it takes
    session      one life of a consumer
    look         what lies in queues; declares nothing
    wire         the endpoints of a generated application

Connections are plain ones, opened anew here when they go: a robust connection of aio_pika restores itself in the
background, and can then be open and consume nothing (https://github.com/mosquito/aio-pika/issues/231).
"""
