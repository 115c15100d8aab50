/* SPDX-License-Identifier: MIT
 *
 * Where the program finds what it runs. The messages say how to get what is missing.
 */
#include "paths.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool joined(char path[PATH_ROOM], const char *dir, int dir_len, const char *file)
{
    return snprintf(path, PATH_ROOM, "%.*s/%s", dir_len, dir, file) < PATH_ROOM;
}

/* As a shell would look the command up. */
static bool in_path(const char *command, char path[PATH_ROOM])
{
    const char *dirs = getenv("PATH");
    while (dirs) {
        int len = (int)strcspn(dirs, ":");
        if (joined(path, len ? dirs : ".", len ? len : 1, command) && access(path, X_OK) == 0)
            return true;
        dirs = dirs[len] ? dirs + len + 1 : NULL;
    }
    return false;
}

int paths_qemu(const char *chosen, char path[PATH_ROOM], struct err *e)
{
    const char *command = chosen && *chosen ? chosen : "qemu-system-x86_64";
    bool found = strchr(command, '/')
                     ? snprintf(path, PATH_ROOM, "%s", command) < PATH_ROOM && !access(path, X_OK)
                     : in_path(command, path);
    if (found)
        return 0;
    return err_set(e, instar_Code_NO_QEMU,
                   "There is no QEMU: '%s' is not a program that can be run\n"
                   "Install it (Debian, Ubuntu: apt install qemu-system-x86) or name one with "
                   "--qemu.",
                   command);
}

int paths_image(const char *chosen, const char *file, char path[PATH_ROOM], struct err *e)
{
    static const char *const beside[] = {"../images", "../lib/instar"};
    char self[PATH_ROOM] = "";
    if (chosen && *chosen) {
        if (joined(path, chosen, (int)strlen(chosen), file) && access(path, R_OK) == 0)
            return 0;
        return err_set(e, instar_Code_NO_QEMU, "There is no unikernel '%s' in '%s'", file, chosen);
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash = n > 0 ? strrchr(self, '/') : NULL;
    for (int i = 0; slash && i < 2; i++) {
        strcpy(slash, "/");
        if (strlen(self) + strlen(beside[i]) >= sizeof self)
            break;
        strcat(self, beside[i]);
        if (joined(path, self, (int)strlen(self), file) && access(path, R_OK) == 0)
            return 0;
    }
    return err_set(e, instar_Code_NO_QEMU,
                   "There is no unikernel '%s' beside the program\n"
                   "Build it (make) or say where it is with --images.",
                   file);
}
