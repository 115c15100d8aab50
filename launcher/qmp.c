/* SPDX-License-Identifier: MIT
 *
 * QMP over a socketpair. QEMU is no more trusted than its guest: a line has a longest length, and
 * what it says is only printed.
 */
#include "qmp.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* A QEMU that does not take it is dead, which its process tells, or hangs: the watchdog's affair.
 */
static void say(struct qmp *q, const char *command)
{
    send(q->fd, command, strlen(command), MSG_NOSIGNAL | MSG_DONTWAIT);
    q->pending++;
}

void qmp_open(struct qmp *q, int fd)
{
    q->fd = fd;
    q->pending = 0;
    q->have = 0;
    q->reason[0] = '\0';
    say(q, "{\"execute\":\"qmp_capabilities\"}\n");
}

void qmp_resize(struct qmp *q, unsigned slot, uint64_t length)
{
    char command[160];
    snprintf(command, sizeof command,
             "{\"execute\":\"block_resize\",\"arguments\":{\"node-name\":\"f%u\",\"size\":%llu}}\n",
             slot, (unsigned long long)length);
    say(q, command);
}

static bool begins(const char *line, const char *with)
{
    return strncmp(line, with, strlen(with)) == 0;
}

/* The text of an error reply, as far as it is easily found. */
static int failed(char *line, struct err *e)
{
    static const char key[] = "\"desc\": \"";
    char *text = strstr(line, key);
    char *end = text ? strrchr(text + sizeof key - 1, '"') : NULL;
    if (!end)
        return err_set(e, instar_Code_NO_SPACE, "QEMU could not make the file longer");
    *end = '\0';
    return err_set(e, instar_Code_NO_SPACE, "The file could not be made longer: %s",
                   text + sizeof key - 1);
}

/* An event: a failed request's reason is the host's strerror(), without quotes in it. */
static void take_event(struct qmp *q, const char *line)
{
    static const char key[] = "\"reason\": \"";
    const char *text = strstr(line, "\"BLOCK_IO_ERROR\"") ? strstr(line, key) : NULL;
    if (text && !q->reason[0])
        snprintf(q->reason, sizeof q->reason, "%.*s", (int)strcspn(text + sizeof key - 1, "\""),
                 text + sizeof key - 1);
}

static int take_line(struct qmp *q, char *line, struct err *e)
{
    bool error = begins(line, "{\"error\"");
    if (!error && !begins(line, "{\"return\"")) {
        take_event(q, line);
        return 0;
    }
    if (q->pending == 0)
        return err_set(e, instar_Code_PROTOCOL, "QEMU answered what nobody asked");
    q->pending--;
    return error ? failed(line, e) : 0;
}

int qmp_read(struct qmp *q, bool *ended, struct err *e)
{
    ssize_t n = recv(q->fd, q->buf + q->have, sizeof q->buf - 1 - q->have, MSG_DONTWAIT);
    *ended = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    if (n <= 0)
        return 0;
    q->have += (size_t)n;
    char *line = q->buf, *newline;
    while ((newline = memchr(line, '\n', (size_t)(q->buf + q->have - line)))) {
        *newline = '\0';
        if (take_line(q, line, e) < 0)
            return -1;
        line = newline + 1;
    }
    q->have -= (size_t)(line - q->buf);
    memmove(q->buf, line, q->have);
    if (q->have == sizeof q->buf - 1)
        return err_set(e, instar_Code_PROTOCOL, "QEMU sent a line that is too long");
    return 0;
}
