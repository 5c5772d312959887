/* What the broker allows: librabbitmq, and no work on the bodies, but to find the number after "seconds".
 *
 *     limit send PLAN | limit work        by the protocol of ../protocol.py; BENCH_URL, BENCH_QUEUE_TYPE, BENCH_RECORD
 */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 200, CHANNEL = 1, MOST_PACED = 10000, MOST_TIMED = 100000, RING = 65536 };
static const char *QUEUE = "bench";
static amqp_connection_state_t connection;
static uint64_t published, unconfirmed, oldest = 1; /* tags count from 1 */
static char pending[RING];
static double sent_at[RING], took[MOST_TIMED]; /* of what the callers send */
static int timed;

static void must(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "limit: %s failed\n", what);
        exit(1);
    }
}

static void answered(const char *what) {
    must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, what);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void rest(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    if (seconds > 0) nanosleep(&t, NULL);
}

static void open_queue(void) {
    struct amqp_connection_info info;
    char *url = strdup(getenv("BENCH_URL"));
    must(amqp_parse_url(url, &info) == AMQP_STATUS_OK, "BENCH_URL");
    connection = amqp_new_connection();
    must(amqp_socket_open(amqp_tcp_socket_new(connection), info.host, info.port) == AMQP_STATUS_OK, "connect");
    amqp_rpc_reply_t login = amqp_login(connection, info.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0,
                                        AMQP_SASL_METHOD_PLAIN, info.user, info.password);
    must(login.reply_type == AMQP_RESPONSE_NORMAL, "login");
    amqp_channel_open(connection, CHANNEL);
    answered("channel.open");
    amqp_table_entry_t type = {amqp_cstring_bytes("x-queue-type"), {.kind = AMQP_FIELD_KIND_UTF8}};
    type.value.value.bytes = amqp_cstring_bytes(getenv("BENCH_QUEUE_TYPE"));
    amqp_table_t arguments = {1, &type};
    amqp_queue_declare(connection, CHANNEL, amqp_cstring_bytes(QUEUE), 0, 1, 0, 0, arguments);
    answered("queue.declare");
}

static int make_task(char *body, size_t size, double seconds) {
    unsigned char r[16];
    struct timespec t;
    struct tm utc;
    char at[32];
    must(getrandom(r, sizeof r, 0) == sizeof r, "getrandom");
    clock_gettime(CLOCK_REALTIME, &t);
    for (int byte = 0; byte < 6; byte++) r[byte] = (t.tv_sec * 1000LL + t.tv_nsec / 1000000) >> (40 - 8 * byte);
    r[6] = (r[6] & 0x0f) | 0x70;
    r[8] = (r[8] & 0x3f) | 0x80;
    strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &utc));
    return snprintf(body, size,
                    "{\"id\": \"%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x\", "
                    "\"created_at\": \"%s.%06ld+00:00\", \"payload\": {\"kind\": \"simulate\", \"seconds\": %g}}",
                    r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14],
                    r[15], at, t.tv_nsec / 1000, seconds);
}

/* Read confirms until at most `allowed` are missing. Those of one channel may come out of order. */
static void await_confirms(uint64_t allowed) {
    amqp_frame_t frame;
    while (unconfirmed > allowed) {
        must(amqp_simple_wait_frame(connection, &frame) == AMQP_STATUS_OK, "wait for a confirm");
        must(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "a publish");
        amqp_basic_ack_t *ack = frame.payload.method.decoded;
        for (uint64_t tag = ack->multiple ? oldest : ack->delivery_tag; tag <= ack->delivery_tag; tag++) {
            if (pending[tag % RING] && timed < MOST_TIMED) took[timed++] = now() - sent_at[tag % RING];
            unconfirmed -= pending[tag % RING];
            pending[tag % RING] = 0;
        }
        while (oldest <= published && !pending[oldest % RING]) oldest++;
        amqp_maybe_release_buffers(connection);
    }
}

static void publish(double seconds, uint64_t window) {
    char body[512];
    amqp_bytes_t bytes = {make_task(body, sizeof body, seconds), body};
    amqp_basic_properties_t properties = {._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG};
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.delivery_mode = AMQP_DELIVERY_PERSISTENT;
    await_confirms(window - 1);
    sent_at[(published + 1) % RING] = now();
    must(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes(QUEUE), 1, 0, &properties,
                            bytes) == AMQP_STATUS_OK, "publish");
    published++;
    unconfirmed++;
    pending[published % RING] = 1;
}

static void send_plan(const char *plan) {
    static double at[MOST_PACED];
    int sent = 0, paced = 0, count, used;
    double seconds, interval, began, due;
    amqp_confirm_select(connection, CHANNEL);
    answered("confirm.select");
    began = due = now();
    while (sscanf(plan, "%d:%lf:%lf%n", &count, &seconds, &interval, &used) == 3) {
        for (int i = 0; i < count; i++, sent++) {
            due += interval;
            if (interval > 0) {
                await_confirms(0); /* none is left unread while this sleeps */
                rest(due - now());
                must(paced < MOST_PACED, "to remember so many times");
                at[paced++] = now();
            }
            publish(seconds, WINDOW);
        }
        plan += used + (plan[used] == ',');
    }
    await_confirms(0);
    struct rusage usage;
    double took = now() - began;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"sent\": %d, \"seconds\": %.9f, \"peak_mib\": %.3f, \"at\": [", sent, took, usage.ru_maxrss / 1024.0);
    for (int i = 0; i < paced; i++) printf("%s%.9f", i ? ", " : "", at[i]);
    puts("]}");
}

static int by_length(const void *one, const void *other) {
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

/* Callers who each send their next one when the one before is confirmed are a window of as many. */
static void send_by_callers(int count, int callers) {
    struct rusage before, after;
    amqp_confirm_select(connection, CHANNEL);
    answered("confirm.select");
    must(count <= MOST_TIMED, "to time so many");
    getrusage(RUSAGE_SELF, &before);
    double began = now();
    for (int sent = 0; sent < count; sent++) publish(0, callers);
    await_confirms(0);
    double seconds = now() - began;
    getrusage(RUSAGE_SELF, &after);
    qsort(took, timed, sizeof *took, by_length);
    double cpu_s = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) + (after.ru_stime.tv_sec - before.ru_stime.tv_sec)
        + (after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6;
    printf("{\"sent\": %d, \"seconds\": %.9f, \"p99_ms\": %.6f, \"cpu_us\": %.3f}\n", timed, seconds,
           took[timed * 99 / 100] * 1e3, cpu_s / count * 1e6);
}

static void consume(void) {
    int file = open(getenv("BENCH_RECORD"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    must(file >= 0, "BENCH_RECORD");
    amqp_basic_qos(connection, CHANNEL, 0, 1, 0);
    answered("basic.qos");
    amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes(QUEUE), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    answered("basic.consume");
    for (;;) {
        amqp_envelope_t message;
        amqp_maybe_release_buffers(connection);
        must(amqp_consume_message(connection, &message, NULL, 0).reply_type == AMQP_RESPONSE_NORMAL, "consume");
        double record[3] = {0, now(), 0};
        char *found = memmem(message.message.body.bytes, message.message.body.len, "\"seconds\": ", 11);
        if (found) record[0] = strtod(found + 11, NULL); /* the } after it ends the number */
        rest(record[0]);
        record[2] = now();
        must(write(file, record, sizeof record) == sizeof record, "write");
        must(amqp_basic_ack(connection, CHANNEL, message.delivery_tag, 0) == AMQP_STATUS_OK, "ack");
        amqp_destroy_envelope(&message);
    }
}

int main(int count, char **arguments) {
    must(count > 1, "to know what to do");
    open_queue();
    int tasks, callers;
    if (!strcmp(arguments[1], "send") && sscanf(arguments[count - 1], "%d@%d", &tasks, &callers) == 2)
        send_by_callers(tasks, callers);
    else if (!strcmp(arguments[1], "send"))
        send_plan(arguments[count - 1]);
    else
        consume();
    return 0;
}
